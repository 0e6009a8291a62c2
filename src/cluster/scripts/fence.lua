-- Sets the tombstone of a run whose lease was not renewed: from then on it cannot renew it.
--
-- KEYS[1] mg:nodes   KEYS[2] {mg:nodes}:runs   KEYS[3] {mg:nodes}:swept
-- ARGV[1] node id   ARGV[2] run   ARGV[3] end of its lease as the judge has seen it, ms   ARGV[4] how long the tombstone stands, ms
--
-- Returns 1, or 0 when the lease has changed.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[3]) then
    return 0
end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then
    return 0
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
redis.call('ZADD', KEYS[3], now + ARGV[4], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return 1
