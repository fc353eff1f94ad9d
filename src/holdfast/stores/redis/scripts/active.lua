#!lua flags=no-writes
-- with: rows record
-- Who holds the session's slot.
local uid = call('HGET', session_key(uid_of(ARGV[1], ARGV[2])), 'active')
return uid and record(find(uid)) or false
