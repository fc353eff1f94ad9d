#!lua flags=no-writes
-- What is in the store: runs by state, how many are ready and since when, bytes of logs.
local oldest = tonumber(call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')[2] or nil)
return {
  call('HGETALL', P .. 'counts'), call('ZCARD', QUEUE), oldest and WALL - oldest or 0,
  tonumber(call('HGET', META, 'bytes') or 0)
}
