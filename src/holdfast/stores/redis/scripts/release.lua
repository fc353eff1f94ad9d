#!lua flags=allow-oom
-- with: rows log queue ends tell
-- Back to the front of the queue, epoch + 1, no attempt counted; a flagged run ends cancelled.
local row = find(ARGV[1])
take_composed(4)
if not row then return {'unknown', 0} end
local to = decide(row, 'release')
if not holds(row, tonumber(ARGV[2]), ARGV[3]) or not to then return {'fenced', row.head} end
if to == 'cancelled' then
  local c = plan_end(row, 'cancelled', row.stopping, row.stop_by, false)
  if not c then return to_compose() end
  local had_slot = row.slot == 1
  end_from_outside(row, c, true)
  return {'ok', row.head, hand_over(row, had_slot)}
end
requeue(row, false)
return {'ok', row.head}
