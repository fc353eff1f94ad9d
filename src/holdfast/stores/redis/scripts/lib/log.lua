-- The log: one stream a run, entry ids `<seq>-<epoch>`.

-- Append ARGV[first..last] after the head.
local function write(row, first, last, epoch)
  local key, seq, bytes = log_key(row.uid), row.head, 0
  for i = first, last do
    seq = seq + 1
    call('XADD', key, string.format('%d-%d', seq, epoch), 'd', ARGV[i])
    bytes = bytes + #ARGV[i]
  end
  set(row, {head = seq, head_epoch = epoch, log_bytes = row.log_bytes + bytes})
  call('HINCRBY', META, 'bytes', bytes)
  wake('run:' .. row.tenant .. '/' .. row.id, seq)
  return seq
end

local function write_event(row, data, epoch)
  call('XADD', log_key(row.uid), string.format('%d-%d', row.head + 1, epoch), 'd', data)
  set(row, {head = row.head + 1, head_epoch = epoch, log_bytes = row.log_bytes + #data})
  call('HINCRBY', META, 'bytes', #data)
  wake('run:' .. row.tenant .. '/' .. row.id, row.head)
end

-- Whether the log has exactly ARGV[first..last] after `base`, written in the row's epoch, and nothing more.
local function has_written(row, base, first, last)
  if row.head ~= base + last - first + 1 then return false end
  local found = call('XRANGE', log_key(row.uid), string.format('%d', base + 1), '+')
  if #found ~= last - first + 1 then return false end
  for i, entry in ipairs(found) do
    if entry[1] ~= string.format('%d-%d', base + i, row.epoch) or entry[2][2] ~= ARGV[first + i - 1] then
      return false
    end
  end
  return true
end

-- Why a holder's write is not carried out: fence, then the table, then the offset. nil: it is.
local function refused(row, epoch, claim, base, trigger, first, last, finishing)
  if not holds(row, epoch, claim) then return {'fenced', row.head} end
  local to, answer = decide(row, trigger)
  if not to then return {answer, row.head} end
  if row.head ~= base then
    local repeated = not finishing and has_written(row, base, first, last)
    return {repeated and 'dup' or 'gap', row.head}
  end
  return nil
end

-- A claim that wrote run.started has begun: from here it counts as an attempt.
local function begin(row)
  if row.begun == 1 then return end
  set(row, {begun = 1, attempt = row.attempt + 1, started_at = row.started_at or WALL})
  changed(row)
end

local function save_checkpoint(row, data)
  call('HSET', run_key(row.uid), 'checkpoint', data, 'checkpoint_seq', row.head)
end
