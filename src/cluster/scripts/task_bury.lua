-- Adds a dead letter.
--
-- KEYS[1] mg:tasks:dead
-- ARGV[1] the stream is trimmed near so many   ARGV[2…] fields and values
--
-- Returns {1, its entry}.
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local entry = {'XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*'}
for place = 2, #ARGV do
    entry[#entry + 1] = ARGV[place]
end
entry[#entry + 1], entry[#entry + 2] = 'dead_at', now
return {1, redis.call(unpack(entry))}
