#!lua flags=no-writes
-- with: rows
-- A page of the log with the state that goes with it. At least one event if there is any, then as many as fit.
local uid, after, limit, bytes_max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local epoch = ARGV[5]
local row = find_log(uid)
if not row then return {'unknown', 'queued', 0, 0, 0, {}} end
local function page(status, resync, entries)
  return {status, row.state, row.head, row.head_epoch, resync and 1 or 0, entries}
end
if row.gone then return page('gone', false, {}) end
if after > row.head then return page('ok', true, {}) end
if epoch ~= '' and after > 0 then
  local seq = string.format('%d', after)
  local found = call('XRANGE', log_key(uid), seq, seq, 'COUNT', 1)[1]
  if not found or found[1] ~= seq .. '-' .. epoch then return page('ok', true, {}) end
end
local entries, size, from = {}, 0, after + 1
while #entries < limit and size < bytes_max and from <= row.head do
  local chunk = call('XRANGE', log_key(uid), string.format('%d', from), '+', 'COUNT', math.min(50, limit - #entries))
  if #chunk == 0 then break end
  for _, entry in ipairs(chunk) do
    if size >= bytes_max then break end
    entries[#entries + 1] = {entry[1], entry[2][2]}
    size = size + #entry[2][2]
  end
  from = after + 1 + #entries
end
if #entries == 0 and row.head > after then return page('gone', false, {}) end
return page('ok', false, entries)
