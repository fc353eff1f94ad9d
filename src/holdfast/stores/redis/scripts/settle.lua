#!lua flags=allow-oom
-- with: rows log queue ends tell stopping
-- Requeue or end one run, if it is still due.
local uid, trigger, name, grace_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
take_composed(5)
local row, at = find(uid), due(name, uid)
if not row or not at then return false end
local given = row.state == 'running' and (name == 'stop' or name == 'deadline') and grace_ms or 0
if at + given > NOW then return false end

if name == 'listener' then -- whoever served the request that made it is gone, as if its client had left
  local c = plan_stop(row, 'client_disconnect', 'reaper')
  if #wanted > 0 then return to_compose() end
  set_timer('listener', uid, nil)
  local was_running, had_slot, ends = row.state == 'running', row.slot == 1, {}
  carry_out_stop(row, c, 'client_disconnect', 'reaper')
  if c then ends = hand_over(row, had_slot) end
  return {row.tenant, row.id, row.session, was_running and 'stopping' or 'cancelled', 'client_disconnect', ends}
end

if trigger == 'lease_lost' and row.begun == 1 and row.attempt >= row.attempts_max then trigger = 'attempts_spent' end
local to = decide(row, trigger)
if not to then return false end
if to == 'queued' then
  requeue(row, true)
  return {row.tenant, row.id, row.session, 'requeued', false, {}}
end
local reason
if to == 'cancelled' then reason = row.stopping
elseif trigger == 'attempts_spent' then reason = 'worker_lost'
elseif name == 'wait' and row.state == 'queued' then reason = 'queue_timeout'
else reason = 'deadline' end
local c = plan_end(row, to, reason, row.stop_by, false, row.state == 'running')
if not c then return to_compose() end
local had_slot = row.slot == 1
end_from_outside(row, c, false)
return {row.tenant, row.id, row.session, to, reason, hand_over(row, had_slot)}
