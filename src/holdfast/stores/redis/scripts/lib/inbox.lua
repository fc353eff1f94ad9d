-- Steered inputs: a stream with ids `<n>-0`, and the set of the keys that were given, each alone and with its input's hash.

local function knows(row, key)
  return key ~= '' and call('SISMEMBER', P .. 'inboxkeys:' .. row.uid, key) == 1
end

local function with_input(key, text) return key .. '\n' .. redis.sha1hex(text) end

-- Whether a key that is known came with this input.
local function same_input(row, key, text)
  return call('SISMEMBER', P .. 'inboxkeys:' .. row.uid, with_input(key, text)) == 1
end

-- Hand an input to a run that has not ended, once per idempotency key; false where `most` are unread.
local function put_into_inbox(row, text, key, most)
  if knows(row, key) then return true end
  if row.inbox_n - row.inbox_read >= most then return false end
  local n = row.inbox_n + 1
  call('XADD', inbox_key(row.uid), string.format('%d-0', n), 'k', key, 'i', text)
  if key ~= '' then call('SADD', P .. 'inboxkeys:' .. row.uid, key, with_input(key, text)) end
  set(row, {inbox_n = n})
  wake('control')
  if row.state == 'running' then wake_worker('control', row.worker) end
  return true
end
