-- Says that these are still in hand.
--
-- ARGV[1] the run that took them   ARGV[2…] entries
--
-- Returns how many are still its own.
local ours = {}
for place = 2, #ARGV do
    local pending = redis.call('XPENDING', stream, group, ARGV[place], ARGV[place], 1)[1]
    if pending and pending[2] == ARGV[1] then
        ours[#ours + 1] = ARGV[place]
    end
end
for place = 1, #ours, 1000 do
    local last = math.min(place + 999, #ours)
    local claim = {'XCLAIM', stream, group, ARGV[1], 0}
    for number = place, last do
        claim[#claim + 1] = ours[number]
    end
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
end
return #ours
