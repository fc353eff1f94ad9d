#!lua flags=allow-oom
-- Extend the listener's lease of live runs that have one; which. allow-oom: to listen costs no memory, and not to be
-- heard ends the run.
local lease_ms, heard = tonumber(ARGV[1]), {}
for i = 2, #ARGV do
  if due('listener', ARGV[i]) then
    set_timer('listener', ARGV[i], NOW + lease_ms)
    heard[#heard + 1] = i - 2
  end
end
return heard
