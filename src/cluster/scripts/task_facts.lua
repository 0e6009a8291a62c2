-- How many tasks there are.
--
-- Returns {waiting, in hand, due later, dead, how long the oldest has waited in ms}.
local pending = redis.pcall('XPENDING', stream, group)
local in_hand = pending.err and 0 or pending[1]
local waiting = math.max(redis.call('XLEN', stream) - in_hand, 0)
local age = 0
if waiting > 0 then
    local from = '-'
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    for _, info in ipairs(groups.err and {} or groups) do
        for place = 1, #info, 2 do
            if info[place] == 'last-delivered-id' then
                from = '(' .. info[place + 1]
            end
        end
    end
    local oldest = redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
    if oldest then
        age = math.max(now - tonumber(string.match(oldest[1], '^%d+')), 0)
    end
end
return {waiting, in_hand, redis.call('ZCARD', due), redis.call('ZCARD', dead), age}
