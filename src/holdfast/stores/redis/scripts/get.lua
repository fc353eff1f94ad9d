#!lua flags=no-writes
-- with: rows record
-- The record of a run whose log is still there.
local row = find(ARGV[1])
if not row or row.gone then return false end
return record(row)
