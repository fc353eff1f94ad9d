#!lua flags=no-writes
-- with: rows record
-- A tenant's runs, newest first: of one session, in one state, after one run; each may be empty.
local tenant, session, state, limit, after = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local key, filter = runs_key(tenant, state ~= '' and state or nil), nil
if ARGV[6] == '1' then key, filter = P .. 'sruns:' .. uid_of(tenant, session), state ~= '' and state or nil end
local newest, found = '+inf', {}
if after ~= '' then newest = '(' .. (call('HGET', run_key(uid_of(tenant, after)), 'n') or 0) end
while #found < limit do
  local uids = call('ZREVRANGEBYSCORE', key, newest, '-inf', 'LIMIT', 0, limit)
  if #uids == 0 then break end
  local row
  for _, uid in ipairs(uids) do
    row = find(uid)
    if #found < limit and (not filter or row.state == filter) then found[#found + 1] = record(row) end
  end
  newest = '(' .. row.n
end
return found
