#!lua flags=no-writes
-- with: rows
-- The unread steered inputs.
local row, items = find(ARGV[1]), {}
if not row then return items end
for _, entry in ipairs(call('XRANGE', inbox_key(row.uid), string.format('%d', row.inbox_read + 1), '+')) do
  if tonumber(string.match(entry[1], '^%d+')) <= row.inbox_n then items[#items + 1] = {entry[1], entry[2][4]} end
end
return items
