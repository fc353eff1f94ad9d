-- Marking a run gone: from here it is in no list, its log answers GONE, and what is large is deleted in small steps.
local function mark_gone(row)
  set(row, {gone = WALL})
  call('ZREM', runs_key(row.tenant), row.uid)
  call('ZREM', runs_key(row.tenant, row.state), row.uid)
  call('ZREM', P .. 'sruns:' .. row.suid, row.uid)
  call('ZREM', ENDED, row.uid)
  call('ZREM', FORGOTTEN, row.uid)
  call('ZADD', GONE, row.tenant == SYNTHETIC and 0 or WALL, row.uid) -- of those nobody asks whether they are gone
  call('SADD', DELETING, row.uid)
  call('HINCRBY', META, 'bytes', -row.log_bytes)
  changed(row)
end
