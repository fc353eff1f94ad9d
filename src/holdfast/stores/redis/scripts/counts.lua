#!lua flags=no-writes
-- What is in the store: runs by state, how many are ready and since when, bytes of logs, how many are overdue.
local oldest = tonumber(call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')[2] or nil)
return {
  call('HGETALL', P .. 'counts'), call('ZCARD', QUEUE), oldest and WALL - oldest or 0,
  tonumber(call('HGET', META, 'bytes') or 0),
  call('ZCOUNT', timer_key('deadline'), '-inf', NOW - tonumber(ARGV[1])) +
    call('ZCOUNT', timer_key('stop'), '-inf', NOW - tonumber(ARGV[1]))
}
