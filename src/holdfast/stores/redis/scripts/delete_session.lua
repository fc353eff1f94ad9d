#!lua flags=allow-oom
-- with: rows log queue ends stopping gone
-- A new generation: what was before is stopped, its history dropped, its logs marked gone. allow-oom: it frees memory.
local tenant, session, by = ARGV[1], ARGV[2], ARGV[3]
take_composed(4)
local suid = uid_of(tenant, session)
local s = call('HMGET', session_key(suid), 'generation', 'deleted', 'active')
if not s[1] or s[2] == '1' then return {'unknown'} end
local stops = {}
for _, uid in ipairs(call('ZRANGE', behind_key(suid), 0, -1)) do stops[#stops + 1] = {row = find(uid)} end
if s[3] then stops[#stops + 1] = {row = find(s[3])} end
for _, stop in ipairs(stops) do stop.composed = plan_stop(stop.row, 'stopped', by) end
if #wanted > 0 then return to_compose() end
call('HSET', session_key(suid), 'generation', tonumber(s[1]) + 1, 'deleted', 1, 'updated_at', WALL)
call('ZREM', P .. 'sessions:' .. tenant, session)
call('ZADD', DELETED_SESSIONS, WALL, suid)
for _, stop in ipairs(stops) do carry_out_stop(stop.row, stop.composed, 'stopped', by) end -- reap hands the ends out
call('UNLINK', P .. 'history:' .. suid)
for _, uid in ipairs(call('ZRANGE', P .. 'sruns:' .. suid, 0, -1)) do
  local row = find(uid)
  if terminal(row) then mark_gone(row) end
end
wake('list:' .. tenant)
return {'ok'}
