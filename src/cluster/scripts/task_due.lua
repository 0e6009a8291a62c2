-- Puts what is due into the stream, and forgets what has ended long ago.
--
-- ARGV[1] at most so many
--
-- Returns {whether there may be more, Redis' time in ms, when the next one is due or -1, {id, when it is due, fields} of
-- each cron that is due…}.
local most = tonumber(ARGV[1])
local crons = {}
local found = redis.call('ZRANGEBYSCORE', due, '-inf', whole(now), 'WITHSCORES', 'LIMIT', 0, most)
for place = 1, #found, 2 do
    local kind, id = string.sub(found[place], 1, 1), string.sub(found[place], 2)
    if kind == 'c' then
        crons[#crons + 1] = {id, found[place + 1], redis.call('HGET', cron_key(id), 'fields') or ''}
    else
        redis.call('ZREM', due, found[place])
        if redis.call('EXISTS', task_key(id)) == 1 then
            queue(id)
        end
    end
end
local over = redis.call('ZRANGEBYSCORE', ended, '-inf', whole(now), 'LIMIT', 0, most)
for _, id in ipairs(over) do
    forget(id)
end
local next = redis.call('ZRANGEBYSCORE', due, '(' .. whole(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local more = #found == most * 2 or #over == most
return {more and 1 or 0, now, tonumber(next[2] or -1), unpack(crons)}
