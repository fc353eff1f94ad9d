-- The ready queue, round robin between tenants, and what stands behind a session's slot.

local function leave_queue(row)
  call('ZREM', ready_key(row.tenant), row.uid)
  call('ZREM', QUEUE, row.uid)
  call('ZREM', behind_key(row.suid), row.uid)
end

local function take_turn(tenant)
  if not call('ZSCORE', TURNS, tenant) then call('ZADD', TURNS, call('HINCRBY', META, 'turn', 1), tenant) end
end

-- A rank before every ready run of the tenant.
local function front_rank(row)
  local first = call('ZRANGE', ready_key(row.tenant), 0, 0, 'WITHSCORES')
  if not first[2] then return row.rank end
  return math.min(row.rank, tonumber(first[2]) - 1)
end

-- Put a run at the head of its session into the ready queue; its queue timeout runs anew from here.
local function make_ready(row, rank)
  set_state(row, 'queued')
  set(row, {slot = 1, rank = rank, begun = 0, ready_at = row.ready_at or WALL})
  set_timer('wait', row.uid, NOW + row.queue_timeout_ms)
  if not due('deadline', row.uid) then set_timer('deadline', row.uid, NOW + (row.deadline_left or row.deadline_ms)) end
  set_timer('lease', row.uid, nil)
  call('ZREM', behind_key(row.suid), row.uid)
  call('ZADD', ready_key(row.tenant), rank, row.uid)
  call('ZADD', QUEUE, WALL, row.uid)
  call('HSET', session_key(row.suid), 'active', row.uid)
  take_turn(row.tenant)
  wake_idle()
  changed(row)
end

-- Take a run from its holder, to the front of the ready queue.
local function requeue(row, counts)
  set(row, {epoch = row.epoch + 1, claim = '', worker = '', attempt = row.attempt - (counts and 0 or row.begun)})
  make_ready(row, front_rank(row))
end

-- Give the free slot to the first run behind it.
local function promote(suid)
  local first = call('ZRANGE', behind_key(suid), 0, 0)
  if first[1] then
    local row = find(first[1])
    make_ready(row, row.rank)
  end
end

-- new: tenant, id, session, generation, policy, the four limits, spec, trace, rehearsal, created, idem, body_hash,
-- listener_ms, rank (all but the last two and idem are there). The row of the new run, behind its session's slot.
local function insert_run(new)
  local n = call('HINCRBY', META, 'n', 1)
  local uid, suid = uid_of(new.tenant, new.id), uid_of(new.tenant, new.session)
  local rank = new.rank or n
  call('HSET', run_key(uid), 'tenant', new.tenant, 'id', new.id, 'session', new.session, 'generation', new.generation,
    'n', n, 'policy', new.policy, 'body_hash', new.body_hash or '', 'state', 'queued', 'slot', 0, 'rank', rank,
    'head', 0, 'head_epoch', 0, 'log_bytes', 0, 'epoch', 0, 'claim', '', 'worker', '', 'attempt', 0, 'begun', 0,
    'attempts_max', new.attempts_max, 'stop_by', '', 'created_at', WALL, 'deadline_ms', new.deadline_ms,
    'queue_timeout_ms', new.queue_timeout_ms, 'session_wait_ms', new.session_wait_ms, 'inbox_n', 0, 'inbox_read', 0,
    'rehearsal', new.rehearsal, 'trace', new.trace, 'idem', new.idem or '', 'spec', new.spec)
  if new.idem and new.idem ~= '' then call('HSET', P .. 'idem:' .. new.tenant, new.idem, uid) end
  count(new.tenant, 'queued', 1)
  call('ZADD', runs_key(new.tenant), n, uid)
  call('ZADD', runs_key(new.tenant, 'queued'), n, uid)
  call('ZADD', P .. 'sruns:' .. suid, n, uid)
  call('HINCRBY', session_key(suid), 'rows', 1)
  call('ZADD', behind_key(suid), rank, uid)
  set_timer('wait', uid, NOW + new.session_wait_ms)
  if (new.listener_ms or 0) > 0 then set_timer('listener', uid, NOW + new.listener_ms) end
  local row = find(uid)
  write_event(row, new.created, 0)
  changed(row)
  return row
end
