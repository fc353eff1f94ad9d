#!lua
-- with: rows log
-- All or none of the events, and with them the checkpoint and what they read of the inbox.
local uid, epoch, claim, base = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local begins, consumed, has_checkpoint = ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7] == '1'
local row = find_held(uid)
if not row then return {'unknown', 0} end
local refusal = refused(row, epoch, claim, base, 'append', 9, #ARGV)
if refusal then return refusal end
write(row, 9, #ARGV, epoch)
if begins then begin(row) end
if has_checkpoint then save_checkpoint(row, ARGV[8]) end
if consumed > row.inbox_read then set(row, {inbox_read = math.min(consumed, row.inbox_n)}) end
return {'ok', row.head}
