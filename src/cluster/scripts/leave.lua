-- Takes a run of a node from among the nodes: its name goes last.
--
-- KEYS[1] mg:nodes   KEYS[2] {mg:nodes}:runs   KEYS[3] {mg:nodes}:lan   KEYS[4] {mg:nodes}:php
-- ARGV[1] node id   ARGV[2] run
--
-- Returns 1, or 0 when the node id is another run's by now.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then
    return 0
end
local claims = redis.call('HGETALL', KEYS[3])
for place = 1, #claims, 2 do
    if claims[place + 1] == ARGV[1] then
        redis.call('HDEL', KEYS[3], claims[place])
    end
end
local said = ARGV[2] .. ' '
for _, field in ipairs(redis.call('HKEYS', KEYS[4])) do
    if string.sub(field, 1, #said) == said then
        redis.call('HDEL', KEYS[4], field)
    end
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
