#!lua
-- with: rows inbox
-- An input into the inbox of a run that has not ended.
local row = find(ARGV[1])
if not row then return 'unknown' end
if knows(row, ARGV[3]) then return same_input(row, ARGV[3], ARGV[2]) and 'ok' or 'conflict' end
if terminal(row) then return row.gone and 'gone' or 'ended' end
return put_into_inbox(row, ARGV[2], ARGV[3], tonumber(ARGV[4])) and 'ok' or 'busy'
