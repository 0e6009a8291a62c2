-- Takes a task off the dead letters and queues it, as if it had never been tried.
--
-- ARGV[1] id
--
-- Returns {1, its entry among the dead letters}, or {0}.
local id = ARGV[1]
local key = task_key(id)
if redis.call('ZREM', dead, id) == 0 then
    return {0}
end
redis.call('ZREM', ended, id)
local letter = redis.call('HGET', key, 'letter') or ''
redis.call('HSET', key, 'base', 0, 'attempts', 0)
redis.call('HDEL', key, 'reason', 'result', 'ended', 'letter', 'poison')
queue(id)
return {1, letter}
