#!lua flags=allow-oom
-- with: rows log queue ends tell
-- Requeue or end one run of a worker that is proven dead. `blamed`: 'no' (nobody is), 'this' or 'another'.
local uid, worker, blamed = ARGV[1], ARGV[2], ARGV[3]
take_composed(4)
local row = find(uid)
if not row or row.state ~= 'running' or row.worker ~= worker then return false end
local spent = row.begun == 1 and row.attempt >= row.attempts_max
local over = blamed == 'this' or (spent and blamed == 'no')
local to = decide(row, over and 'attempts_spent' or 'lease_lost')
if to == 'queued' then
  requeue(row, blamed == 'no')
  return {row.tenant, row.id, row.session, 'requeued', false, {}}
end
local reason = to == 'cancelled' and row.stopping or blamed == 'this' and 'agent_error' or 'worker_lost'
local c = plan_end(row, to, reason, row.stop_by, true)
if not c then return to_compose() end
local had_slot = row.slot == 1
end_from_outside(row, c, false)
return {row.tenant, row.id, row.session, to, reason, hand_over(row, had_slot)}
