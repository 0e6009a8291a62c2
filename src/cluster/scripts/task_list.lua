-- A page of tasks: those that are due later, those in the stream, those in hand, those that have ended, the dead ones.
--
-- ARGV[1] at most so many   ARGV[2] which: letters of `d`, `s`, `r`, `e`, `x`, in this order   ARGV[3] letter, ARGV[4] score
-- or entry, ARGV[5] member of the last one on the page before, or nothing
--
-- Returns {0, letter, score, member, {id, state, attempts, next, reason, fields}, …}; the letter is empty at the end.
local most, wanted, letter, last, last_member = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local page, cursor = {0, '', '', ''}, {'', '', ''}
local length, looked = 0, 0

-- As Redis sorts members of one score, whatever the locale is.
local function is_after(one, other)
    for place = 1, math.min(#one, #other) do
        local a, b = string.byte(one, place), string.byte(other, place)
        if a ~= b then
            return a > b
        end
    end
    return #one > #other
end

local function length_of(shown)
    local fields = shown[6]
    if type(fields) == 'string' then
        return #fields
    end
    local sum = 0
    for _, field in ipairs(fields) do
        sum = sum + #field
    end
    return sum
end

-- False when the page was full before; so it is with few tasks that are large, and where many had to be looked at.
local function add(shown, section, score, member)
    looked = looked + 1
    if cursor[1] ~= '' and (shown and (#page - 4 == most or length > MOST_BYTES) or looked > 20000) then
        page[2], page[3], page[4] = cursor[1], cursor[2], cursor[3]
        return false
    end
    if shown then
        length = length + length_of(shown)
        page[#page + 1] = shown
    end
    cursor = {section, score, member}
    return true
end

local function sorted(section, key, show)
    local low, from = letter == section and last or '-inf', 0
    while true do
        local found = redis.call('ZRANGEBYSCORE', key, low, '+inf', 'WITHSCORES', 'LIMIT', from, 1000)
        for place = 1, #found, 2 do
            local member, score = found[place], found[place + 1]
            local is_new = letter ~= section or tonumber(score) > tonumber(last) or is_after(member, last_member)
            if is_new and not add(show(member), section, score, member) then
                return false
            end
        end
        if #found < 2000 then
            return true
        end
        from = from + 1000
    end
end

local function in_state(state)
    return function(id)
        local shown = view(id)
        return shown and shown[2] == state and shown or nil
    end
end

local sections = {}

function sections.d()
    return sorted('d', due, function(member)
        local id = string.sub(member, 2)
        if string.sub(member, 1, 1) == 't' then
            return view(id)
        end
        local cron = redis.call('HMGET', cron_key(id), 'next', 'fields')
        return cron[2] and {id, 'waiting', 0, cron[1], '', cron[2]} or nil
    end)
end

function sections.s()
    local from = '-'
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    for _, info in ipairs(groups.err and {} or groups) do
        for place = 1, #info, 2 do
            if info[place] == 'last-delivered-id' then
                from = '(' .. info[place + 1]
            end
        end
    end
    if letter == 's' then
        from = '(' .. last
    end
    while true do
        local found = redis.call('XRANGE', stream, from, '+', 'COUNT', 100)
        for _, entry in ipairs(found) do
            if not add(view_entry(entry[1], entry[2], 'waiting', 0), 's', entry[1], '') then
                return false
            end
            from = '(' .. entry[1]
        end
        if #found < 100 then
            return true
        end
    end
end

function sections.r()
    local from = letter == 'r' and '(' .. last or '-'
    while true do
        local found = redis.pcall('XPENDING', stream, group, from, '+', 1000)
        for _, pending in ipairs(found.err and {} or found) do
            local entry = redis.call('XRANGE', stream, pending[1], pending[1])[1]
            local shown = entry and view_entry(entry[1], entry[2], 'running', pending[4])
            if not add(shown, 'r', pending[1], '') then
                return false
            end
            from = '(' .. pending[1]
        end
        if found.err or #found < 1000 then
            return true
        end
    end
end

function sections.e()
    return sorted('e', ended, in_state('done'))
end

function sections.x()
    return sorted('x', dead, in_state('dead'))
end

local begun = letter == ''
for section in string.gmatch(wanted, '.') do
    begun = begun or section == letter
    if begun and not sections[section]() then
        break
    end
end
return page
