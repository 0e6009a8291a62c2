-- Takes over what nobody has renewed for too long, and takes nodes that are gone out of the group.
--
-- ARGV[1] run   ARGV[2] how long it was not renewed, ms   ARGV[3] at most so many   ARGV[4] how long a node was silent, ms
--
-- Returns {0, {entry, how often it was delivered, fields}, …}.
local answers, run, idle, most = {0}, ARGV[1], ARGV[2], tonumber(ARGV[3])
local pending = most > 0 and redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', most) or {}
local length = 0
for _, found in ipairs(pending) do
    if length > MOST_BYTES then
        break
    end
    local entry = redis.call('XCLAIM', stream, group, run, idle, found[1])[1]
    if entry then
        for _, field in ipairs(entry[2]) do
            length = length + #field
        end
        answers[#answers + 1] = {entry[1], found[4] + 1, entry[2]}
    else
        -- It was deleted meanwhile.
        redis.call('XACK', stream, group, found[1])
    end
end
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local consumer = {}
    for place = 1, #info, 2 do
        consumer[info[place]] = info[place + 1]
    end
    if consumer.name ~= run and consumer.pending == 0 and consumer.idle > tonumber(ARGV[4]) then
        redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
    end
end
return answers
