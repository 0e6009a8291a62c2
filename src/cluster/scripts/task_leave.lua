-- Takes a run out of the group when it has nothing in hand: what it had would never be delivered again.
--
-- ARGV[1] run
--
-- Returns 1 when it is out.
if redis.call('EXISTS', stream) == 0 then
    return 1
end
if #redis.call('XPENDING', stream, group, '-', '+', 1, ARGV[1]) > 0 then
    return 0
end
redis.call('XGROUP', 'DELCONSUMER', stream, group, ARGV[1])
return 1
