-- Who tells of an end that no worker wrote: the step's caller, or whoever begins the session's next run.

local function take_rows(rows)
  local ends = {}
  table.sort(rows, function(a, b)
    if a.ended_at ~= b.ended_at then return a.ended_at < b.ended_at end
    return a.n < b.n
  end)
  for _, row in ipairs(rows) do
    ends[#ends + 1] = {row.tenant, row.id, row.session, row.trace, row.state, row.reason, row.stop_by,
      row.unsaid == 2 and 1 or 0, row.created_at, row.ended_at}
    set(row, {unsaid = false})
    call('ZREM', P .. 'unsaid:' .. row.suid, row.uid)
    if call('EXISTS', P .. 'unsaid:' .. row.suid) == 0 then call('SREM', UNSAID, row.suid) end
  end
  return ends
end

-- What is untold in a session; the caller tells it.
local function take_ends(suid)
  local rows = {}
  for _, uid in ipairs(call('ZRANGE', P .. 'unsaid:' .. suid, 0, -1)) do
    local row = find(uid)
    if row then rows[#rows + 1] = row else call('ZREM', P .. 'unsaid:' .. suid, uid) end
  end
  return take_rows(rows)
end

local function has_live(suid)
  return call('HEXISTS', session_key(suid), 'active') == 1 or call('EXISTS', behind_key(suid)) == 1
end

-- What the caller has to tell after it ended `row`, which held the slot or stood behind it.
local function hand_over(row, had_slot)
  if not had_slot then return take_rows({row}) end -- no run begins because of it
  if has_live(row.suid) then return {} end
  return take_ends(row.suid)
end
