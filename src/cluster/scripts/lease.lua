-- Enters this run of a node among the nodes, or renews its lease. All keys are in the slot of the first.
--
-- KEYS[1] mg:nodes   KEYS[2] {mg:nodes}:runs   KEYS[3] {mg:nodes}:lan   KEYS[4] {mg:nodes}:swept
-- ARGV[1] node id    ARGV[2] run   ARGV[3] LAN address   ARGV[4] how long the lease lasts, ms
-- ARGV[5] end of the lease as it was last written, ms; 0 for the first time   ARGV[6] how long a tombstone stands, ms
--
-- Returns {what, Redis' time in ms, end of the lease in ms, who has what is taken}. `what` is 1: renewed; 2: entered, there
-- was no lease or not the one last written; 3: the node id is another run's; 4: the LAN address is another node's;
-- 5: this run was swept; 6: the node id or the LAN address is a dead node's that is being swept.
--
-- A run that is among the nodes takes its place from one whose lease has ended: a snapshot has brought back an earlier
-- life of this node. That one gets a tombstone, so that its clients are swept.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, run, lan, ttl, last = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('ZSCORE', KEYS[4], run) then
    return {5, now, 0, ''}
end
local lease = tonumber(redis.call('ZSCORE', KEYS[1], id) or 0)
local owner = redis.call('HGET', KEYS[2], id)
if owner and owner ~= run and lease > 0 then
    if last > 0 and lease <= now then
        redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
        redis.call('ZADD', KEYS[4], now + ARGV[6], owner)
        redis.call('PEXPIRE', KEYS[4], ARGV[6])
    else
        return {redis.call('ZSCORE', KEYS[4], owner) and 6 or 3, now, lease, owner}
    end
end
local neighbour = redis.call('HGET', KEYS[3], lan)
if neighbour and neighbour ~= id then
    local other = tonumber(redis.call('ZSCORE', KEYS[1], neighbour) or 0)
    if other > 0 and (last == 0 or other > now) then
        local other_run = redis.call('HGET', KEYS[2], neighbour) or ''
        return {redis.call('ZSCORE', KEYS[4], other_run) and 6 or 4, now, other, neighbour}
    end
end
local lease_end = now + ttl
redis.call('ZADD', KEYS[1], lease_end, id)
if owner ~= run then
    redis.call('HSET', KEYS[2], id, run)
end
if neighbour ~= id then
    redis.call('HSET', KEYS[3], lan, id)
end
local renewed = last > 0 and lease == last and owner == run and neighbour == id
return {renewed and 1 or 2, now, lease_end, ''}
