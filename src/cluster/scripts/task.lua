-- What the scripts of queued tasks have in common; it stands before each of them. `keys.rs` lists the keys.
--
-- KEYS[1] mg:tasks; all other keys are in its slot, and named after it.
local stream, group, base = KEYS[1], 'moongate', '{' .. KEYS[1] .. '}:'
local due, ended, dead = base .. 'due', base .. 'ended', base .. 'dead'
local DAY, MINUTE, MOST_DEAD, MOST_BYTES = 86400000, 60000, 10000, 4194304
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function whole(number)
    return string.format('%.0f', number)
end

local function task_key(id)
    return base .. 'task:' .. id
end

local function replies_key(id)
    return base .. 'replies:' .. id
end

local function cron_key(id)
    return base .. 'cron:' .. id
end

-- Takes an entry off the stream; 1 when it was delivered and not finished.
local function take_off(entry)
    local finished = redis.call('XACK', stream, group, entry)
    redis.call('XDEL', stream, entry)
    return finished
end

-- Puts a task that has a record into the stream.
local function queue(id)
    local entry = redis.call('XADD', stream, '*', 'moongate:task', id)
    redis.call('HSET', task_key(id), 'state', 'queued', 'entry', entry)
    redis.call('HDEL', task_key(id), 'next')
end

local function forget(id)
    redis.call('DEL', task_key(id), replies_key(id))
    redis.call('ZREM', ended, id)
    redis.call('ZREM', dead, id)
end

-- The state of a task that is remembered; what has ended long enough ago is forgotten, and so is what never was a task.
local function state_of(id)
    local key = task_key(id)
    local state = redis.call('HGET', key, 'state')
    if not state then
        return nil
    end
    local until_when = tonumber(redis.call('ZSCORE', ended, id) or now + 1)
    if state == 'dead' then
        until_when = tonumber(redis.call('HGET', key, 'ended')) + DAY
    end
    if until_when <= now or redis.call('HEXISTS', key, 'poison') == 1 then
        return nil
    end
    return state
end

-- Whether one place in the order of the stream is behind another: `<ms>-<seq>` of an entry, and with a third number of
-- what was done behind it without one.
local function is_behind(one, other)
    local a, b, c = string.match(one, '^(%d+)%-(%d+)%-?(%d*)$')
    local d, e, f = string.match(other, '^(%d+)%-(%d+)%-?(%d*)$')
    if not a or not d then
        return false
    end
    if a ~= d then
        return tonumber(a) > tonumber(d)
    end
    if b ~= e then
        return tonumber(b) > tonumber(e)
    end
    return (tonumber(c) or 0) > (tonumber(f) or 0)
end

-- The place behind all that is in the stream by now.
local function last_place()
    local info = redis.pcall('XINFO', 'STREAM', stream)
    for place = 1, info.err and 0 or #info, 2 do
        if info[place] == 'last-generated-id' then
            return info[place + 1] .. '-1'
        end
    end
    return whole(now) .. '-0-1'
end

-- What is shown of a task that has a record: {id, state, attempts, next, reason, fields}.
local function view(id)
    local found = redis.call('HMGET', task_key(id), 'state', 'attempts', 'next', 'reason', 'fields')
    if not found[1] or found[1] == 'cancelled' then
        return nil
    end
    return {id, found[1], tonumber(found[2] or 0), found[3] or '', found[4] or '', found[5] or ''}
end

-- The same of an entry of the stream; the last is a list where there is no record.
local function view_entry(entry, fields, state, deliveries)
    if #fields == 2 and fields[1] == 'moongate:task' then
        return view(fields[2])
    end
    for place = 1, #fields, 2 do
        local id = fields[place + 1]
        if fields[place] == 'id' and redis.call('HGET', task_key(id), 'entry') == entry then
            return view(id)
        end
    end
    return {entry, state, deliveries, '', '', fields}
end
