#!lua flags=allow-oom
-- with: rows
-- Delete what is large of some runs that are gone; whether there is more. UNLINK frees on a thread of Redis, so that a
-- long log holds up nobody.
local uids = call('SRANDMEMBER', DELETING, 20)
for _, uid in ipairs(uids) do
  call('UNLINK', log_key(uid), inbox_key(uid), P .. 'inboxkeys:' .. uid)
  local tenant = call('HGET', run_key(uid), 'tenant')
  for _, field in ipairs(call('SMEMBERS', P .. 'steers_of:' .. uid)) do
    call('HDEL', P .. 'steers:' .. tenant, field)
  end
  call('DEL', P .. 'steers_of:' .. uid)
  call('HDEL', run_key(uid), 'spec', 'result')
  call('HSET', run_key(uid), 'head', 0, 'head_epoch', 0, 'log_bytes', 0, 'inbox_n', 0, 'inbox_read', 0)
  call('SREM', DELETING, uid)
end
return #uids
