-- A run's row: the small fields of its hash. Large ones (spec, checkpoint, result, decisions) are read where needed.
-- Numbers stand first.
local FIELDS = {
  'generation', 'n', 'slot', 'rank', 'head', 'head_epoch', 'log_bytes', 'epoch', 'attempt', 'begun', 'attempts_max',
  'stop_at', 'gone', 'created_at', 'ready_at', 'started_at', 'ended_at', 'deadline_ms', 'queue_timeout_ms',
  'session_wait_ms', 'deadline_left', 'inbox_n', 'inbox_read', 'unsaid', 'rehearsal',
  'tenant', 'id', 'session', 'policy', 'body_hash', 'state', 'reason', 'claim', 'worker', 'stopping', 'stop_by',
  'trace', 'idem'
}
local NUMBERS = 25

-- What a holder's writes and renewals look at: they are most of the calls.
local HELD_FIELDS = {
  'head', 'log_bytes', 'epoch', 'attempt', 'begun', 'stop_at', 'started_at', 'inbox_n', 'inbox_read',
  'tenant', 'id', 'state', 'claim', 'stopping', 'stop_by'
}
local HELD_NUMBERS = 9

local function load(uid, fields, numbers)
  local values = call('HMGET', run_key(uid), unpack(fields))
  local row = {uid = uid}
  for i = 1, #fields do
    local value = values[i]
    if value then row[fields[i]] = i <= numbers and tonumber(value) or value end
  end
  return row.tenant and row or nil
end

local function find(uid)
  local row = load(uid, FIELDS, NUMBERS)
  if row then row.suid = uid_of(row.tenant, row.session) end
  return row
end

-- What a reader of the log looks at.
local function find_log(uid) return load(uid, {'head', 'head_epoch', 'gone', 'tenant', 'state'}, 3) end

local function find_held(uid) return load(uid, HELD_FIELDS, HELD_NUMBERS) end

-- Change fields, in the row and in the store; false takes a field away.
local function set(row, fields)
  local put, drop = {}, {}
  for name, value in pairs(fields) do
    if value == false then
      row[name] = nil
      drop[#drop + 1] = name
    else
      row[name] = value
      put[#put + 1] = name
      put[#put + 1] = value
    end
  end
  if #put > 0 then call('HSET', run_key(row.uid), unpack(put)) end
  if #drop > 0 then call('HDEL', run_key(row.uid), unpack(drop)) end
end

local function phase(row)
  if row.state == 'running' and row.stopping then return 'stopping' end
  return row.state
end

-- The phase after `trigger`, or nil and the status to answer. LIFE is written from domain.runs.TABLE by scripts.py.
local function decide(row, trigger)
  local move = string.match(LIFE, '\n' .. phase(row) .. '%.' .. trigger .. '=(%S+)')
  if string.sub(move, 1, 1) == '>' then return string.sub(move, 2) end
  return nil, move
end

local function terminal(row) return TERMINAL[row.state] end

local function same_claim(row, epoch, claim) return row.epoch == epoch and row.claim == claim end
local function holds(row, epoch, claim) return same_claim(row, epoch, claim) and row.state == 'running' end

local function unread(row) return row.inbox_n > row.inbox_read end

-- A worker lets go of a run: who waited at a cap on running runs goes on (see claim.lua).
local function leave_running(tenant)
  local ready = call('EXISTS', ready_key(tenant)) == 1
  if ready and not call('ZSCORE', TURNS, tenant) then
    call('ZADD', TURNS, call('HINCRBY', META, 'turn', 1), tenant)
    wake_idle()
  end
  if call('HDEL', META, 'held_back') == 1 then wake_idle() end
end

-- The indexes by state, and the counts that admission and health ask for.
local function set_state(row, state)
  if row.state == state then return end
  count(row.tenant, row.state, -1)
  count(row.tenant, state, 1)
  call('ZREM', runs_key(row.tenant, row.state), row.uid)
  if not row.gone then call('ZADD', runs_key(row.tenant, state), row.n, row.uid) end
  if row.state == 'running' then leave_running(row.tenant) end
  set(row, {state = state})
end

local function changed(row)
  wake('run:' .. row.tenant .. '/' .. row.id, row.head)
  wake('list:' .. row.tenant)
end
