#!lua flags=no-writes
-- with: rows record sessions
-- Most recently used first.
local tenant, limit, after = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local key, from, found = P .. 'sessions:' .. tenant, 0, {}
if after ~= '' then
  local rank = call('ZREVRANK', key, after)
  if not rank then return found end
  from = rank + 1
end
for _, id in ipairs(call('ZREVRANGE', key, from, from + limit - 1)) do found[#found + 1] = session_record(tenant, id) end
return found
