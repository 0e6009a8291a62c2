-- Takes a run of a node from among the nodes: its name goes last.
--
-- KEYS[1] mg:nodes   KEYS[2] {mg:nodes}:runs   KEYS[3] {mg:nodes}:lan   KEYS[4] {mg:nodes}:php
-- ARGV[1] node id   ARGV[2] run
--
-- Returns 1, or 0 when the node id is another run's by now.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then
    return 0
end
local function clear(key, owner)
    local entries = redis.call('HGETALL', key)
    for place = 1, #entries, 2 do
        if entries[place + 1] == owner then
            redis.call('HDEL', key, entries[place])
        end
    end
end
clear(KEYS[3], ARGV[1])
clear(KEYS[4], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
