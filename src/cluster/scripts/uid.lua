-- Binds a client to a uid, or unbinds it, and says when: of two at once everybody finds the later one.
--
-- KEYS[1] mg:uid:<uid>:clients   KEYS[2] {mg:uid:<uid>:clients}:seq, where it is told   KEYS[3] mg:events, where it is told there
-- ARGV[1] client id   ARGV[2] bound, unbound, or single: bound, and who else is   ARGV[3] near how many entries the stream is
-- trimmed   ARGV[4…] fields of the event, but for the last two
--
-- Returns {µs by Redis' clock, growing for each uid; 1 where it was a change; how many clients the uid has; for single,
-- client ids of the others…}.
local time = redis.call('TIME')
local seq = time[1] * 1000000 + time[2]
local unbound = ARGV[2] == 'unbound'
local answer = {}
if ARGV[2] == 'single' then
    for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
        if id ~= ARGV[1] then
            answer[#answer + 1] = id
        end
    end
end
local changed = redis.call(unbound and 'SREM' or 'SADD', KEYS[1], ARGV[1])
local clients = redis.call('SCARD', KEYS[1])
if KEYS[2] then
    -- Clocks are set back at times: for as long as that may matter.
    local last = tonumber(redis.call('GET', KEYS[2]) or 0)
    seq = math.max(seq, last + 1)
    redis.call('SET', KEYS[2], string.format('%.0f', seq), 'PX', 600000)
end
if KEYS[3] and changed == 1 then
    local event = {}
    for place = 4, #ARGV do
        event[#event + 1] = ARGV[place]
    end
    event[#event + 1] = unbound and 'last' or 'first'
    event[#event + 1] = tostring(clients == (unbound and 0 or 1))
    event[#event + 1] = 'seq'
    event[#event + 1] = string.format('%.0f', seq)
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', unpack(event))
end
table.insert(answer, 1, clients)
table.insert(answer, 1, changed)
table.insert(answer, 1, seq)
return answer
