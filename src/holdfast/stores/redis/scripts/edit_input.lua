#!lua
-- with: rows log
-- Replace the input of a run that never began. The log says so; what it said before stays as readers saw it. Where the
-- event does not fit, the answer is 'compose', the head and the spec.
local uid, head, spec, event = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local row = find(uid)
if not row then return {'unknown'} end
if row.state ~= 'queued' or row.started_at then return {'ended'} end
if head ~= row.head then return {'compose', row.head, call('HGET', run_key(uid), 'spec')} end
call('HSET', run_key(uid), 'spec', spec)
write_event(row, event, row.epoch)
changed(row)
return {'ok'}
