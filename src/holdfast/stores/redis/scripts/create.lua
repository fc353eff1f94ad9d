#!lua
-- with: rows log queue inbox ends stopping record
-- Idempotency key, id, what it follows, policy, admission: in this order, and nothing is changed before all have passed.
-- Compositions of the runs that a supersede ends follow after the arguments.
local tenant, id, session, policy, idem, body_hash = unpack(ARGV, 1, 6)
local deadline_ms, queue_timeout_ms, session_wait_ms, attempts_max = unpack(ARGV, 7, 10)
local behind_max, active_max, listener_ms = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local queued_max, tenant_active_max, tenant_queued_max = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
local drain_ms, drain_runs = tonumber(ARGV[17]), tonumber(ARGV[18])
local follows, spec, trace, rehearsal, created, input = unpack(ARGV, 19, 24)
take_composed(25)
local uid, suid = uid_of(tenant, id), uid_of(tenant, session)
local steers = P .. 'steers:' .. tenant

local known = idem ~= '' and call('HGET', P .. 'idem:' .. tenant, idem)
local before = known and find(known) or find(uid)
if before then return {before.body_hash == body_hash and 'exists' or 'conflict', record(before)} end

local steer_fields = idem ~= '' and {'key:' .. idem, 'id:' .. id} or {'id:' .. id}
for _, field in ipairs(steer_fields) do
  local steered = call('HGET', steers, field)
  if steered then
    local at = string.find(steered, '\n', 1, true)
    local row = find(string.sub(steered, at + 1))
    if row then return {string.sub(steered, 1, at - 1) == body_hash and 'steered' or 'conflict', record(row)} end
  end
end

if follows ~= '' and call('ZREVRANGE', P .. 'sruns:' .. suid, 0, 0)[1] ~= uid_of(tenant, follows) then
  return {'moved', false}
end

local active_uid = call('HGET', session_key(suid), 'active')
local active = active_uid and find(active_uid) or nil
local behind = call('ZRANGE', behind_key(suid), 0, -1)

if policy == 'steer' and active then
  if not put_into_inbox(active, input, idem, behind_max) then return {'busy', record(active)} end
  for _, field in ipairs(steer_fields) do
    call('HSET', steers, field, body_hash .. '\n' .. active.uid)
    call('SADD', P .. 'steers_of:' .. active.uid, field)
  end
  return {'steered', record(active)}
end
if policy == 'reject' and active then return {'busy', record(active)} end
if policy == 'enqueue' and active and #behind >= behind_max then return {'busy', record(active)} end

local supersede = policy == 'supersede'

-- What one run more would stand on: those that end last say how fast there will be room.
local function shed(cap, limit, found, of)
  local ends, oldest, prefix = 0, WALL - drain_ms, of and uid_of(of, '')
  local most = of and 4 * drain_runs or drain_runs
  local last = call('ZREVRANGEBYSCORE', ENDED, '+inf', '(' .. oldest, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #last, 2 do
    if not prefix or string.sub(last[i], 1, #prefix) == prefix then
      ends, oldest = ends + 1, tonumber(last[i + 1])
    end
  end
  if ends == 0 then
    oldest = WALL
    local firsts = of and {runs_key(of, 'queued'), runs_key(of, 'running'), runs_key(of, 'waiting')}
      or {timer_key('deadline'), timer_key('wait')} -- of all: one of the oldest
    for _, key in ipairs(firsts) do
      local first = call('ZRANGE', key, 0, 0)[1]
      oldest = math.min(oldest, tonumber(first and call('HGET', run_key(first), 'created_at') or nil) or oldest)
    end
  end
  return {'overloaded', false, {}, {cap, limit, found, ends, math.max(0, WALL - oldest)}}
end

-- A prompt that ends at least one run takes its place, and is not counted anew.
if not (supersede and (active or #behind > 0)) then
  if tenant_active_max > 0 or tenant_queued_max > 0 then
    local queued = call('ZCARD', runs_key(tenant, 'queued'))
    local live = queued + call('ZCARD', runs_key(tenant, 'running')) + call('ZCARD', runs_key(tenant, 'waiting'))
    if tenant_active_max > 0 and live >= tenant_active_max then
      return shed('tenant_runs_active', tenant_active_max, live, tenant)
    end
    if tenant_queued_max > 0 and queued >= tenant_queued_max then
      return shed('tenant_runs_queued', tenant_queued_max, queued, tenant)
    end
  end
  local counts = call('HMGET', P .. 'counts', 'queued', 'running', 'waiting')
  local queued = tonumber(counts[1]) or 0
  local live = queued + (tonumber(counts[2]) or 0) + (tonumber(counts[3]) or 0)
  if active_max > 0 and live >= active_max then return shed('runs_active', active_max, live) end
  if queued_max > 0 and queued >= queued_max then return shed('runs_queued', queued_max, queued) end
end

-- What is behind ends first, so that ending the active one promotes nobody.
local stops = {}
if supersede then
  for _, other in ipairs(behind) do stops[#stops + 1] = {row = find(other)} end
  if active then stops[#stops + 1] = {row = active} end
  for _, stop in ipairs(stops) do stop.composed = plan_stop(stop.row, 'superseded', id) end
  if #wanted > 0 then return to_compose() end
end

-- Nothing was written before here. The ends stay unsaid: the new run follows them.
local superseded = {}
for _, stop in ipairs(stops) do
  carry_out_stop(stop.row, stop.composed, 'superseded', id)
  if stop.composed then superseded[#superseded + 1] = stop.row.id end
end
local known_session = call('HMGET', session_key(suid), 'generation', 'deleted', 'created_at')
local generation = known_session[1] or 1
local anew = not known_session[1] or known_session[2] == '1'
call('HSET', session_key(suid), 'tenant', tenant, 'id', session, 'generation', generation, 'deleted', 0,
  'updated_at', WALL, 'created_at', anew and WALL or known_session[3])
call('ZADD', P .. 'sessions:' .. tenant, WALL, session)
call('ZREM', DELETED_SESSIONS, suid)
local row = insert_run({
  tenant = tenant, id = id, session = session, generation = generation, policy = policy, idem = idem,
  body_hash = body_hash, deadline_ms = deadline_ms, queue_timeout_ms = queue_timeout_ms,
  session_wait_ms = session_wait_ms, attempts_max = attempts_max, listener_ms = listener_ms, spec = spec,
  trace = trace, rehearsal = rehearsal, created = created
})
if call('HEXISTS', session_key(suid), 'active') == 0 then make_ready(row, row.rank) end
return {'ok', record(row), superseded}
