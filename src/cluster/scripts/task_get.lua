-- What is known of a task: one that has not ended, a cron, one that has ended, or an entry without a record.
--
-- ARGV[1] id
--
-- Returns {0}, or {1, {id, state, attempts, next, reason, fields}}.
local id = ARGV[1]
local shown = view(id)
if shown and (shown[2] == 'done' or shown[2] == 'dead') or not shown then
    local cron = redis.call('HMGET', cron_key(id), 'next', 'fields')
    if cron[2] then
        shown = {id, 'waiting', 0, cron[1], '', cron[2]}
    end
end
if not shown and string.match(id, '^%d+%-%d+$') then
    -- What only looks like an entry's id is refused.
    local entry = redis.pcall('XRANGE', stream, id, id)[1]
    if type(entry) == 'table' then
        local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
        local delivered = not pending.err and pending[1]
        shown = view_entry(id, entry[2], delivered and 'running' or 'waiting', delivered and delivered[4] or 0)
    end
end
if shown then
    return {1, shown}
end
return {0}
