-- Adds a client to a uid and says who else has it: of two at once, the later one sees the earlier.
--
-- KEYS[1] mg:uid:<uid>:clients
-- ARGV[1] client id
--
-- Returns {how many others, their client ids…}.
local others = {0}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if id ~= ARGV[1] then
        others[#others + 1] = id
    end
end
others[1] = #others - 1
redis.call('SADD', KEYS[1], ARGV[1])
return others
