-- Sets the next time of a cron, and queues the one that is due; once, whoever says so.
--
-- ARGV[1] id   ARGV[2] the time that is due, unix ms   ARGV[3] the next one, or nothing   ARGV[4] the task's fields, or
-- nothing where the time was missed
--
-- Returns 1, or 0 when somebody else has done so.
local id, at = ARGV[1], ARGV[2]
if tonumber(redis.call('ZSCORE', due, 'c' .. id) or -1) ~= tonumber(at) then
    return 0
end
if ARGV[3] == '' then
    redis.call('ZREM', due, 'c' .. id)
    redis.call('DEL', cron_key(id))
else
    redis.call('ZADD', due, ARGV[3], 'c' .. id)
    redis.call('HSET', cron_key(id), 'next', ARGV[3])
end
local tick = id .. '@' .. at
if ARGV[4] ~= '' and redis.call('EXISTS', task_key(tick)) == 0 then
    redis.call('HSET', task_key(tick), 'fields', ARGV[4], 'own', 0, 'base', 0, 'attempts', 0)
    queue(tick)
end
return 1
