#!lua flags=no-writes
-- Milliseconds until the first timer runs out, grace not counted.
local first = nil
for _, name in ipairs(TIMERS) do
  local at = tonumber(call('ZRANGE', timer_key(name), 0, 0, 'WITHSCORES')[2] or nil)
  if at and (not first or at < first) then first = at end
end
return first and math.max(0, first - NOW) or false
