#!lua flags=allow-oom
-- with: rows
-- Extend the leases that still hold; a flagged run's too, because its worker must be able to end it. allow-oom, because
-- a full memory must cost no run its worker. What the worker says of itself (facts, if not empty) is kept for a minute.
local worker, lease_ms, facts = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local answers = {}
for i = 4, #ARGV, 3 do
  local row = find_held(ARGV[i])
  if row and holds(row, tonumber(ARGV[i + 1]), ARGV[i + 2]) then
    set_timer('lease', row.uid, NOW + lease_ms)
    answers[#answers + 1] = {0, row.stopping or false, row.stop_by, row.stop_at or 0, unread(row) and 1 or 0}
  else
    answers[#answers + 1] = {1, false, '', 0, 0}
  end
end
if facts ~= '' then
  call('HSET', P .. 'workers', worker, WALL .. '\n' .. facts)
  call('ZADD', P .. 'workers_due', NOW + 60000, worker)
  for _, old in ipairs(call('ZRANGEBYSCORE', P .. 'workers_due', '-inf', NOW)) do
    call('HDEL', P .. 'workers', old)
    call('ZREM', P .. 'workers_due', old)
  end
end
return answers
