#!lua flags=no-writes
-- with: rows record
-- How a tenant's runs stand: those that have not ended, the first made after a number, and those that are named.
local tenant, since, made = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local fields = {'n', 'slot', 'head', 'epoch', 'attempt', 'gone', 'tenant', 'id', 'session', 'state', 'stopping'}
local found, seen, upto = {}, {}, since

local function glance(uid)
  if seen[uid] then return end
  seen[uid] = true
  local row = load(uid, fields, 6)
  if not row or row.gone then return end
  local queued = ''
  if row.state == 'queued' then
    row.suid = uid_of(tenant, row.session)
    queued = position(row) .. ' ' .. row.head
  end
  local mark = {row.state, row.stopping or '', row.epoch, row.attempt, queued}
  found[#found + 1] = {row.id, row.n, table.concat(mark, ' ')}
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
