#!lua flags=allow-oom
-- Expire the leases of the workers named, or of all; how many there were.
local dead, count = {}, 0
for _, worker in ipairs(ARGV) do dead[worker] = true end
for _, uid in ipairs(call('ZRANGE', timer_key('lease'), 0, -1)) do
  if #ARGV == 0 or dead[call('HGET', run_key(uid), 'worker')] then
    call('ZADD', timer_key('lease'), NOW, uid)
    count = count + 1
  end
end
return count
