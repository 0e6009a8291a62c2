-- Begins tasks that were read from the stream, or takes new ones in; those are known by their ids from then on.
--
-- ARGV, nine for each: what it is: `ref` (an entry that names a record), `add` or `cron` (a task of its own); its entry, or
-- nothing; how often that was delivered; id; 1 if that is its own; fields; when it is due: unix ms, `+` and ms from now, or
-- nothing; where it is answered, or nothing; its place in the order of the stream, or nothing.
--
-- Returns {0, {what, …}, …}, one for each: {1, attempt, fields}: it is to be run; {2, when}: it is kept until then, or in
-- the stream; {3, result}: it was there before, with the result if that is known; {4}: it was cancelled, or is another
-- entry's by now; {5}: a later cron has its id, or it
-- never comes again.
local answers = {0}

local function begin(id, entry, deliveries)
    local key = task_key(id)
    local found = redis.call('HMGET', key, 'base', 'fields')
    local attempt = tonumber(found[1] or 0) + deliveries
    redis.call('HSET', key, 'state', 'running', 'entry', entry, 'attempts', attempt)
    redis.call('HDEL', key, 'next')
    return {1, attempt, found[2] or ''}
end

local function is_held(id, entry)
    local found = redis.call('HMGET', task_key(id), 'state', 'entry')
    return entry ~= '' and found[2] == entry and (found[1] == 'queued' or found[1] == 'running')
end

local function add(entry, deliveries, id, own, fields, when, reply)
    local key, state = task_key(id), state_of(id)
    if state and not is_held(id, entry) then
        if entry ~= '' then
            take_off(entry)
        end
        if state == 'cancelled' then
            return {4}
        end
        local result = redis.call('HGET', key, 'result') or ''
        if reply ~= '' and result == '' and redis.call('LLEN', replies_key(id)) < 1000 then
            redis.call('RPUSH', replies_key(id), reply)
        end
        return {3, result}
    end
    if not state then
        forget(id)
        redis.call('HSET', key, 'fields', fields, 'own', own, 'base', 0, 'attempts', 0)
    end
    local at = tonumber(when) or 0
    if string.sub(when, 1, 1) == '+' then
        at = now + tonumber(string.sub(when, 2))
    end
    if at > now then
        redis.call('HSET', key, 'state', 'waiting', 'next', whole(at))
        redis.call('ZADD', due, whole(at), 't' .. id)
        if entry ~= '' then
            take_off(entry)
        end
        return {2, at}
    end
    if entry == '' then
        queue(id)
        return {2, 0}
    end
    return begin(id, entry, deliveries)
end

local function add_cron(entry, id, fields, when, order)
    local key, place = cron_key(id), order ~= '' and order or last_place()
    local before = redis.call('HGET', key, 'order')
    if entry ~= '' then
        take_off(entry)
    end
    if when == '' or before and is_behind(before, place) then
        return {5}
    end
    redis.call('DEL', key)
    redis.call('HSET', key, 'fields', fields, 'order', place, 'next', when)
    redis.call('ZADD', due, when, 'c' .. id)
    return {2, tonumber(when)}
end

for place = 1, #ARGV, 9 do
    local what, entry, deliveries, id = ARGV[place], ARGV[place + 1], tonumber(ARGV[place + 2]), ARGV[place + 3]
    local own, fields, when = ARGV[place + 4], ARGV[place + 5], ARGV[place + 6]
    local answer
    if what == 'cron' then
        answer = add_cron(entry, id, fields, when, ARGV[place + 8])
    elseif what == 'add' then
        answer = add(entry, deliveries, id, own, fields, when, ARGV[place + 7])
    elseif is_held(id, entry) then
        answer = begin(id, entry, deliveries)
    else
        take_off(entry)
        answer = {4}
    end
    answers[#answers + 1] = answer
end
return answers
