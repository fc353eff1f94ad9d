#!lua flags=allow-oom
-- with: rows log queue ends
-- The terminal write of the holder. Terminal by this claim -> dup, else the fence, else the table (the stop flag), else
-- the offset, else unread input. One composition follows the events, where history or unread input need one.
local uid, epoch, claim, base = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local begins, trigger, state, reason = ARGV[5] == '1', ARGV[6], ARGV[7], ARGV[8]
local leave_inbox, result, entry, rehearsal = ARGV[9] == '1', ARGV[10], ARGV[11], tonumber(ARGV[12])
local last = 13 + tonumber(ARGV[13])
take_composed(last + 1)
local row = find(uid)
if not row then return {'unknown', 0} end
if terminal(row) then return {same_claim(row, epoch, claim) and 'dup' or 'fenced', row.head} end
local refusal = refused(row, epoch, claim, base, trigger, 14, last, true)
if refusal then return refusal end
if state == 'completed' and not leave_inbox and unread(row) then return {'pending_input', row.head} end
local c = nil
if entry == '' or unread(row) then
  c = plan_end(row, state, reason, '', false)
  if not c then return to_compose() end
end
write(row, 14, last, epoch)
if begins then begin(row) end
set(row, {rehearsal = math.max(row.rehearsal, rehearsal)})
local given = {result = result, entry = entry ~= '' and entry or c.entry}
if c then
  given.follow_id, given.follow_spec, given.follow_created = c.follow_id, c.follow_spec, c.follow_created
end
close(row, state, reason, given)
return {'ok', row.head}
