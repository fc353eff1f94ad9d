#!lua flags=no-writes
-- with: rows
-- The runs that a worker holds, first come first.
local rows, uids = {}, {}
for _, uid in ipairs(call('ZRANGE', timer_key('lease'), 0, -1)) do
  if call('HGET', run_key(uid), 'worker') == ARGV[1] then rows[#rows + 1] = find(uid) end
end
table.sort(rows, function(a, b) return a.rank < b.rank end)
for i, row in ipairs(rows) do uids[i] = row.uid end
return uids
