#!lua
-- with: rows log queue
-- From waiting back into the ready queue, epoch + 1, the deadline with what it had left. The event has a place in the
-- log: where it does not fit (any more), the answer is 'compose' and the head.
local uid, decisions, head, event = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local row = find(uid)
if not row then return {'unknown', 0} end
local to, answer = decide(row, 'resume')
if not to then return {answer, row.head} end
if head ~= row.head then return {'compose', row.head} end
write_event(row, event, row.epoch + 1)
-- Asking a human is no lost attempt.
set(row, {epoch = row.epoch + 1, claim = '', worker = '', attempt = row.attempt - row.begun})
call('HSET', run_key(uid), 'decisions', decisions)
make_ready(row, front_rank(row))
set(row, {deadline_left = false})
return {'ok', row.head}
