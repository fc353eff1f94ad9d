#!lua
-- Answer a question; who asked takes the answer, or it goes by itself.
local id, text, life_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
call('SET', P .. 'answer:' .. id, text, 'PX', life_ms)
wake('answer:' .. id)
