#!lua
-- with: rows log
-- Some decisions about a waiting run, which waits on. The event was made for the place behind `base`: where the log has
-- grown meanwhile, somebody else has decided, and the answer is 'gap'.
local uid, base, event = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local row = find(uid)
if not row then return {'unknown', 0} end
local to, answer = decide(row, 'resume')
if not to then return {answer, row.head} end
if base ~= row.head then return {'gap', row.head} end
write_event(row, event, row.epoch)
changed(row)
return {'ok', row.head}
