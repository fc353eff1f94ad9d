#!lua flags=allow-oom
-- with: rows
-- Drop the rows of runs that were gone for long enough (until then a read answers gone, not unknown), then forgotten
-- sessions that have none left.
local age_ms, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
for _, uid in ipairs(call('ZRANGEBYSCORE', GONE, '-inf', WALL - age_ms, 'LIMIT', 0, limit)) do
  local row = find(uid)
  if row and call('SISMEMBER', DELETING, uid) == 0 then
    if row.idem and call('HGET', P .. 'idem:' .. row.tenant, row.idem) == uid then
      call('HDEL', P .. 'idem:' .. row.tenant, row.idem)
    end
    call('ZREM', P .. 'unsaid:' .. row.suid, uid)
    if call('EXISTS', P .. 'unsaid:' .. row.suid) == 0 then call('SREM', UNSAID, row.suid) end
    call('HINCRBY', session_key(row.suid), 'rows', -1)
    count(row.tenant, row.state, -1)
    call('DEL', run_key(uid))
    call('ZREM', GONE, uid)
  end
end
for _, suid in ipairs(call('ZRANGEBYSCORE', DELETED_SESSIONS, '-inf', WALL - 2 * age_ms, 'LIMIT', 0, limit)) do
  if tonumber(call('HGET', session_key(suid), 'rows') or 0) <= 0 then
    call('DEL', session_key(suid))
    call('ZREM', DELETED_SESSIONS, suid)
  end
end
return limit
