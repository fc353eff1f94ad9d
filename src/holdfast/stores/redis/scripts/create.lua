#!lua
-- with: rows log queue inbox ends stopping record
-- Idempotency key, id, policy, admission: in this order, and nothing is changed before all have passed.
-- Compositions of the runs that a supersede ends follow after the twenty arguments.
local tenant, id, session, policy, idem, body_hash = unpack(ARGV, 1, 6)
local deadline_ms, queue_timeout_ms, session_wait_ms, attempts_max = unpack(ARGV, 7, 10)
local behind_max, active_max, listener_ms = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local spec, trace, rehearsal, created, input = unpack(ARGV, 14, 18)
take_composed(19)
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
local ended = supersede and #behind + (active and active.state ~= 'running' and 1 or 0) or 0
local live = 0
for _, count in ipairs(call('HMGET', P .. 'counts', 'queued', 'running', 'waiting')) do
  live = live + (tonumber(count) or 0)
end
if live - ended >= active_max then return {'overloaded', false} end

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
