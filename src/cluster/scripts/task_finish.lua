-- Writes what came of tasks, and takes their entries off the stream; of what two nodes say of one, the first counts.
--
-- ARGV[1] how many entries follow that are done and have no record, then those; then eight for each of the others: entry;
-- id; `done`, `dead`, `again`, or `poison` for what never was a task; attempt; reason; result; fields; in how many ms it is
-- tried again, or its entry among the dead letters.
--
-- Returns {0, {accepted, keys to be answered besides…}, …}, one for each of the others.
local answers, plain = {0}, tonumber(ARGV[1])
if plain > 0 then
    redis.call('XACK', stream, group, unpack(ARGV, 2, plain + 1))
    redis.call('XDEL', stream, unpack(ARGV, 2, plain + 1))
end

-- Of too many dead letters the oldest go; what has an id of its own is still not run twice.
local function trim()
    local extra = redis.call('ZCARD', dead) - MOST_DEAD
    for _, id in ipairs(extra > 0 and redis.call('ZRANGE', dead, 0, extra - 1) or {}) do
        local found = redis.call('HMGET', task_key(id), 'own', 'ended')
        local until_when = tonumber(found[2] or 0) + DAY
        if found[1] == '1' and until_when > now then
            redis.call('ZREM', dead, id)
            redis.call('ZADD', ended, whole(until_when), id)
        else
            forget(id)
        end
    end
end

local function finish(entry, id, outcome, attempt, reason, result, fields, more)
    if take_off(entry) == 0 then
        return {0}
    end
    if outcome == 'poison' and state_of(id) then
        id = entry
    end
    local key, answer = task_key(id), {1}
    if outcome == 'poison' then
        forget(id)
        redis.call('HSET', key, 'poison', 1)
    end
    redis.call('HSET', key, 'fields', fields, 'attempts', attempt)
    redis.call('HDEL', key, 'entry', 'next', 'reason')
    if reason ~= '' then
        redis.call('HSET', key, 'reason', reason)
    end
    if outcome == 'again' then
        local at = whole(now + tonumber(more))
        redis.call('HSET', key, 'state', 'waiting', 'next', at, 'base', attempt)
        redis.call('ZADD', due, at, 't' .. id)
        return answer
    end
    redis.call('HSET', key, 'ended', whole(now), 'result', result)
    if outcome == 'done' then
        redis.call('HSET', key, 'state', 'done')
        local own = redis.call('HGET', key, 'own') == '1'
        redis.call('ZADD', ended, whole(now + (own and DAY or MINUTE)), id)
    else
        redis.call('HSET', key, 'state', 'dead', 'letter', more)
        redis.call('ZADD', dead, whole(now), id)
        trim()
    end
    for _, reply in ipairs(redis.call('LRANGE', replies_key(id), 0, -1)) do
        answer[#answer + 1] = reply
    end
    redis.call('DEL', replies_key(id))
    return answer
end

for place = plain + 2, #ARGV, 8 do
    answers[#answers + 1] = finish(unpack(ARGV, place, place + 7))
end
return answers
