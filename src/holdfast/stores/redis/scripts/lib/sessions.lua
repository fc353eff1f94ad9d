-- A session as lists show it; false where it is forgotten, or never was.
local function session_record(tenant, id)
  local suid = uid_of(tenant, id)
  local s = call('HMGET', session_key(suid), 'created_at', 'updated_at', 'active', 'deleted')
  if not s[1] or s[4] == '1' then return false end
  return {id, s[1], s[2], s[3] and record(find(s[3])) or false, call('ZCARD', behind_key(suid)),
    call('ZCARD', P .. 'sruns:' .. suid)}
end
