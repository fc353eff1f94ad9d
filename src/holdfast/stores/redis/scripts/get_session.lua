#!lua flags=no-writes
-- with: rows record sessions
-- One session that was not forgotten.
return session_record(ARGV[1], ARGV[2])
