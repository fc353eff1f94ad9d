-- A snapshot of one run, as rows.py reads it.

local function left(...)
  local first = nil
  for i = 1, select('#', ...) do
    local at = select(i, ...)
    if at and (not first or at < first) then first = at end
  end
  return first and math.max(0, first - NOW) or false
end

local function position(row)
  if row.state ~= 'queued' then return false end
  if row.slot == 1 then return 0 end
  return 1 + (call('ZRANK', behind_key(row.suid), row.uid) or 0)
end

local function record(row)
  local large = call('HMGET', run_key(row.uid), 'spec', 'result')
  return {
    row.tenant, row.id, row.session, large[1], row.policy, row.state, row.reason or false,
    row.state == 'running' and row.stopping or false, row.head, row.epoch, row.attempt, row.worker, row.created_at,
    row.ready_at or false, row.started_at or false, row.ended_at or false, position(row),
    left(due('wait', row.uid), due('deadline', row.uid)), left(due('lease', row.uid)), large[2], row.rehearsal
  }
end
