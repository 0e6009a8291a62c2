-- What was delivered to a run and never arrived there: the connection ended on the way.
--
-- ARGV[1] run   ARGV[2] at most so many   ARGV[3…] entries that it has in hand
--
-- Returns {0, {entry, how often it was delivered, fields}, …}.
local answers, in_hand = {0}, {}
for place = 3, #ARGV do
    in_hand[ARGV[place]] = true
end
local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1000, ARGV[1])
local length = 0
for _, found in ipairs(pending.err and {} or pending) do
    local entry = not in_hand[found[1]] and redis.call('XRANGE', stream, found[1], found[1])[1]
    if entry and #answers <= tonumber(ARGV[2]) and length <= MOST_BYTES then
        for _, field in ipairs(entry[2]) do
            length = length + #field
        end
        answers[#answers + 1] = {entry[1], found[4], entry[2]}
    end
end
return answers
