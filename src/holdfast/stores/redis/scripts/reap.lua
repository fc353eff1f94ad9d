#!lua flags=allow-oom
-- with: rows tell
-- Note that somebody reaps. Time in which nobody did has not passed: it is left out of the clock that timers run on.
-- The gap that was left out, and ends that nobody else will tell (a forgotten session, a successor that never began).
local limit, gap_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local before = tonumber(call('HGET', META, 'reap_at') or nil)
local gap = before and NOW - before or 0
if gap >= 0 and gap <= gap_max then
  gap = 0
  call('HSET', META, 'reap_at', NOW)
else
  call('HINCRBY', META, 'skipped', gap) -- now it is `reap_at` again
end
local ends = {}
for _, suid in ipairs(call('SMEMBERS', UNSAID)) do
  if #ends >= limit then break end
  if not has_live(suid) then
    for _, one in ipairs(take_ends(suid)) do ends[#ends + 1] = one end
  end
end
return {gap, ends}
