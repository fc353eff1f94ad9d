#!lua
-- with: rows log queue tell
-- Round robin between tenants with ready runs; within one, in the order of the queue. One token for each run asked for.
-- A tenant at its cap loses its turn, and has one again when a run of it leaves running (leave_running in rows.lua).
local worker, lease_ms, cap, tenant_cap = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local asked, claims, held_back = #ARGV - 4, {}, false
if cap > 0 then
  local room = cap - tonumber(call('HGET', P .. 'counts', 'running') or 0)
  held_back = room < asked
  asked = math.min(asked, room)
end
while #claims < asked do
  local tenant = call('ZRANGE', TURNS, 0, 0)[1]
  if not tenant then break end
  local capped = tenant_cap > 0 and call('ZCARD', runs_key(tenant, 'running')) >= tenant_cap
  local uid = not capped and call('ZRANGE', ready_key(tenant), 0, 0)[1]
  if capped or not uid then
    call('ZREM', TURNS, tenant)
  else
    call('ZADD', TURNS, call('HINCRBY', META, 'turn', 1), tenant)
    local row, token = find(uid), ARGV[5 + #claims]
    leave_queue(row)
    set_state(row, 'running')
    set(row, {epoch = row.epoch + 1, claim = token, worker = worker, begun = 0})
    set_timer('lease', uid, NOW + lease_ms)
    set_timer('wait', uid, nil)
    changed(row)
    local large = call('HMGET', run_key(uid), 'spec', 'checkpoint', 'checkpoint_seq', 'decisions')
    claims[#claims + 1] = {
      row.tenant, row.id, row.session, row.epoch, token, row.head, row.attempt + 1, row.attempts_max, large[1],
      (due('deadline', uid) or NOW) - NOW, large[2], large[3], row.created_at, row.ready_at or row.created_at,
      large[4], take_ends(row.suid)
    }
  end
end
-- Who got less than it asked for waits for a wake; who got all asks again when it has room.
call(#claims < #ARGV - 4 and 'SADD' or 'SREM', IDLE, worker)
if held_back and call('EXISTS', TURNS) == 1 then call('HSET', META, 'held_back', 1) end
return claims
