#!lua
-- Ask whoever has a worker. Nobody waits for longer than the question lives; what is not taken goes with it.
local worker, id, question, life_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local key = P .. 'asked:' .. worker
call('RPUSH', key, id .. '\n' .. question)
call('LTRIM', key, -64, -1)
call('PEXPIRE', key, life_ms)
wake('ask')
