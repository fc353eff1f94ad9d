#!lua flags=no-writes
-- with: rows
-- What is due now: a run once, by its first timer in the order of reaping.TIMERS, which come as triples of trigger,
-- timer and whether a running run is given grace.
local limit, grace_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local found, seen = {}, {}
for i = 3, #ARGV, 3 do
  local trigger, name, graced = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1'
  local taken = 0
  for _, uid in ipairs(call('ZRANGEBYSCORE', timer_key(name), '-inf', NOW, 'LIMIT', 0, graced and -1 or limit)) do
    if taken >= limit or #found >= limit then break end
    if graced and due(name, uid) + grace_ms > NOW and call('HGET', run_key(uid), 'state') == 'running' then
      -- its holder acts first
    else
      taken = taken + 1
      if not seen[uid] then
        seen[uid] = true
        found[#found + 1] = {uid, trigger, name}
      end
    end
  end
end
return found
