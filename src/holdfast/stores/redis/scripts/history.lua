#!lua flags=no-writes
-- What ended runs left, as pairs of number and entry, in no order.
return call('HGETALL', P .. 'history:' .. uid_of(ARGV[1], ARGV[2]))
