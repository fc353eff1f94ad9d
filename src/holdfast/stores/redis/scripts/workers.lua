#!lua flags=no-writes
-- Who reported in the last minute, as pairs of name and report.
local found = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', P .. 'workers_due', string.format('(%d', NOW), '+inf')) do
  found[#found + 1] = {worker, call('HGET', P .. 'workers', worker)}
end
return found
