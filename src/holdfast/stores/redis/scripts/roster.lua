#!lua flags=no-writes
-- with: rows record
-- How a tenant's runs stand: those that have not ended, the first made after a number, and those that are named.
local tenant, since, made = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local prefix = #uid_of(tenant, '') + 1
local found, seen, upto = {}, {}, since

local function glance(uid)
  if seen[uid] then return end
  seen[uid] = true
  local v = call('HMGET', run_key(uid), 'n', 'state', 'stopping', 'epoch', 'attempt', 'gone', 'slot', 'head', 'session')
  if not v[1] or v[6] then return end
  local queued = ''
  if v[2] == 'queued' then
    local row = {uid = uid, state = v[2], slot = tonumber(v[7]), suid = uid_of(tenant, v[9])}
    queued = position(row) .. ' ' .. v[8]
  end
  local mark = v[2] .. ' ' .. (v[3] or '') .. ' ' .. v[4] .. ' ' .. (v[5] or 0) .. ' ' .. queued
  found[#found + 1] = {string.sub(uid, prefix), tonumber(v[1]), mark}
end

for _, state in ipairs({'queued', 'running', 'waiting'}) do
  for _, uid in ipairs(call('ZRANGE', runs_key(tenant, state), 0, -1)) do glance(uid) end
end
local new = call('ZRANGEBYSCORE', runs_key(tenant), '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, made)
for i = 1, #new, 2 do
  glance(new[i])
  upto = math.max(upto, tonumber(new[i + 1]))
end
for i = 4, #ARGV do glance(uid_of(tenant, ARGV[i])) end
return {found, upto}
