#!lua flags=allow-oom
-- with: rows log queue ends tell stopping record
-- The durable stop flag, first reason kept; a queued or waiting run ends in this very step.
local uid, reason, by = ARGV[1], ARGV[2], ARGV[3]
take_composed(4)
local row = find(uid)
if not row then return {'unknown', false} end
if row.gone then return {'gone', false} end
if terminal(row) then return {'ended', record(row)} end
local c = plan_stop(row, reason, by)
if #wanted > 0 then return to_compose() end
local had_slot, ends = row.slot == 1, {}
carry_out_stop(row, c, reason, by)
if c then ends = hand_over(row, had_slot) end
return {'ok', record(find(uid)), ends}
