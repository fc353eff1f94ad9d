-- A run's row: the small fields of its hash. Large ones (spec, checkpoint, result, decisions) are read where needed.
local FIELDS = {
  'tenant', 'id', 'session', 'generation', 'n', 'policy', 'body_hash', 'state', 'reason', 'slot', 'rank', 'head',
  'head_epoch', 'log_bytes', 'epoch', 'claim', 'worker', 'attempt', 'begun', 'attempts_max', 'stopping', 'stop_by',
  'stop_at', 'gone', 'created_at', 'ready_at', 'started_at', 'ended_at', 'deadline_ms', 'queue_timeout_ms',
  'session_wait_ms', 'deadline_left', 'inbox_n', 'inbox_read', 'unsaid', 'rehearsal', 'trace', 'idem'
}
local NUMBERS = {}
for _, name in ipairs({
  'generation', 'n', 'slot', 'rank', 'head', 'head_epoch', 'log_bytes', 'epoch', 'attempt', 'begun', 'attempts_max',
  'stop_at', 'gone', 'created_at', 'ready_at', 'started_at', 'ended_at', 'deadline_ms', 'queue_timeout_ms',
  'session_wait_ms', 'deadline_left', 'inbox_n', 'inbox_read', 'unsaid', 'rehearsal'
}) do NUMBERS[name] = true end

local function find(uid)
  local values = call('HMGET', run_key(uid), unpack(FIELDS))
  if not values[1] then return nil end
  local row = {uid = uid}
  for i, name in ipairs(FIELDS) do
    local value = values[i]
    if value then row[name] = NUMBERS[name] and tonumber(value) or value end
  end
  row.suid = uid_of(row.tenant, row.session)
  return row
end

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
  local move = LIFE[phase(row)][trigger]
  if string.sub(move, 1, 1) == '>' then return string.sub(move, 2) end
  return nil, move
end

local function terminal(row) return TERMINAL[row.state] end

local function same_claim(row, epoch, claim) return row.epoch == epoch and row.claim == claim end
local function holds(row, epoch, claim) return same_claim(row, epoch, claim) and row.state == 'running' end

local function unread(row) return row.inbox_n > row.inbox_read end

-- The indexes by state, and the counts that admission and health ask for.
local function set_state(row, state)
  if row.state == state then return end
  call('HINCRBY', P .. 'counts', row.state, -1)
  call('HINCRBY', P .. 'counts', state, 1)
  call('ZREM', runs_key(row.tenant, row.state), row.uid)
  if not row.gone then call('ZADD', runs_key(row.tenant, state), row.n, row.uid) end
  set(row, {state = state})
end

local function changed(row)
  wake('run:' .. row.tenant .. '/' .. row.id, row.head)
  wake('list:' .. row.tenant)
end
