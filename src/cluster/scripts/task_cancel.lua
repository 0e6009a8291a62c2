-- Takes a task that waits and a cron away; what is not known yet will not be run when it comes.
--
-- ARGV[1] id   ARGV[2] place in the order of the stream, or nothing
--
-- Returns 1 when there was something to take away.
local id, place = ARGV[1], ARGV[2] ~= '' and ARGV[2] or last_place()
local key, state, done = task_key(id), state_of(id), 0

local function mark()
    forget(id)
    redis.call('HSET', key, 'state', 'cancelled', 'own', 1)
    redis.call('ZADD', ended, whole(now + DAY), id)
end

local found = redis.call('HMGET', cron_key(id), 'order', 'fields')
if not found[1] or not is_behind(found[1], place) then
    if found[2] then
        redis.call('ZREM', due, 'c' .. id)
        done = 1
    end
    redis.call('DEL', cron_key(id))
    redis.call('HSET', cron_key(id), 'order', place)
    redis.call('PEXPIRE', cron_key(id), DAY)
end

if state == 'waiting' then
    redis.call('ZREM', due, 't' .. id)
    mark()
    done = 1
elseif state == 'queued' then
    take_off(redis.call('HGET', key, 'entry'))
    mark()
    done = 1
elseif not state and done == 0 then
    if string.match(id, '^%d+%-%d+$') then
        -- An entry that nobody has read yet.
        local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
        local deleted = (pending.err or #pending == 0) and redis.pcall('XDEL', stream, id) or 0
        done = deleted == 1 and 1 or 0
        if done == 0 and (pending.err or #pending == 0) then
            mark()
        end
    else
        mark()
    end
end
return done
