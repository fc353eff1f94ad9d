#!lua
-- with: rows log
-- To waiting: the lease is given back, the slot kept, the deadline stopped.
local uid, epoch, claim, base = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local begins, approval_ms, checkpoint = ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7]
local row = find(uid)
if not row then return {'unknown', 0} end
if row.state == 'waiting' and same_claim(row, epoch, claim) and has_written(row, base, 8, #ARGV) then
  return {'dup', row.head}
end
local refusal = refused(row, epoch, claim, base, 'park', 8, #ARGV)
if refusal then return refusal end
write(row, 8, #ARGV, epoch)
if begins then begin(row) end
save_checkpoint(row, checkpoint)
set_state(row, 'waiting')
set(row, {deadline_left = math.max(0, (due('deadline', uid) or NOW) - NOW)})
set_timer('lease', uid, nil)
set_timer('wait', uid, NOW + approval_ms)
set_timer('deadline', uid, nil)
changed(row)
return {'ok', row.head}
