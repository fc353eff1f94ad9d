#!lua flags=allow-oom
-- with: rows gone
-- Mark ended runs gone: too old, of a forgotten session, or the oldest above `bytes_max`. How many.
local older_than_ms, bytes_max, limit, linger_ms =
  tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local rows, marked = {}, {}
local over = tonumber(call('HGET', META, 'bytes') or 0) - bytes_max
local function take(uid)
  if marked[uid] or #rows >= limit then return end
  marked[uid] = true
  rows[#rows + 1] = find(uid)
  over = over - rows[#rows].log_bytes
end
for _, uid in ipairs(call('ZRANGEBYSCORE', ENDED, '-inf', WALL - older_than_ms, 'LIMIT', 0, limit)) do take(uid) end
for _, uid in ipairs(call('ZRANGEBYSCORE', FORGOTTEN, '-inf', WALL - linger_ms, 'LIMIT', 0, limit)) do take(uid) end
if over > 0 then
  for _, uid in ipairs(call('ZRANGE', ENDED, 0, limit - 1)) do
    if over <= 0 then break end
    take(uid)
  end
end
for _, row in ipairs(rows) do mark_gone(row) end
return #rows
