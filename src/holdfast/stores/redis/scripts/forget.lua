#!lua flags=allow-oom
-- with: rows log queue ends gone
-- Forget one ended run: out of its session's history, its log gone. allow-oom: it frees memory.
local row = find(ARGV[1])
if not row then return {'unknown'} end
if row.gone then return {'gone'} end
if not terminal(row) then return {'busy'} end
call('HDEL', P .. 'history:' .. row.suid, row.n)
mark_gone(row)
return {'ok'}
