-- Adds a client to a uid and says who else has it, and when: of two at once, the later one stays.
--
-- KEYS[1] mg:uid:<uid>:clients
-- ARGV[1] client id
--
-- Returns {Redis' time in µs, client ids of the others…}.
local time = redis.call('TIME')
local others = {time[1] * 1000000 + time[2]}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if id ~= ARGV[1] then
        others[#others + 1] = id
    end
end
redis.call('SADD', KEYS[1], ARGV[1])
return others
