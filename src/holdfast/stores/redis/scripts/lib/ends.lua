-- Ending a run, in one step whoever ends it: terminal event, slot, queue, history, inbox.
--
-- What goes into the log and the history is composed outside, from the log (stores/composing.py): a script that finds
-- an end to write without the composition that fits the run as it is now changes nothing and answers 'compose' with
-- what is to be composed; the caller composes and calls again. So every end is planned before the first write.
local END_ARGS = 13
local composed, wanted = {}, {}

-- Compositions stand in ARGV from `first` on: uid, epoch, head, inbox_n, state, reason, by, events (a line each), result,
-- entry, id, spec and run.created of the run that unread input becomes.
local function take_composed(first)
  for i = first, #ARGV, END_ARGS do
    composed[ARGV[i]] = {
      epoch = tonumber(ARGV[i + 1]), head = tonumber(ARGV[i + 2]), inbox_n = tonumber(ARGV[i + 3]),
      state = ARGV[i + 4], reason = ARGV[i + 5], by = ARGV[i + 6], event = ARGV[i + 7], result = ARGV[i + 8],
      entry = ARGV[i + 9], follow_id = ARGV[i + 10], follow_spec = ARGV[i + 11], follow_created = ARGV[i + 12]
    }
  end
end

local SMALL_LOG = 64 -- events that come with the question; a longer log is read in pages

local function want(row, state, reason, by, killed, cut_off)
  local large = call('HMGET', run_key(row.uid), 'spec', 'checkpoint', 'checkpoint_seq')
  local inputs, events = {}, {}
  if unread(row) then
    for _, entry in ipairs(call('XRANGE', inbox_key(row.uid), string.format('%d', row.inbox_read + 1), '+')) do
      inputs[#inputs + 1] = entry[2][4]
    end
  end
  if row.head <= SMALL_LOG then
    for _, entry in ipairs(call('XRANGE', log_key(row.uid), '-', '+')) do events[#events + 1] = entry[2][2] end
  end
  wanted[#wanted + 1] = {
    row.uid, row.tenant, row.id, row.session, row.epoch, row.head, row.inbox_n, state, reason, by, killed and 1 or 0,
    cut_off and 1 or 0, WALL, row.stop_at or false, large[1], large[2], large[3], inputs, events
  }
end

-- The composition of an end from outside that fits the run as it is, or nil: then one is wanted. `killed`: who worked
-- on it is dead; `cut_off`: may work on.
local function plan_end(row, state, reason, by, killed, cut_off)
  local c = composed[row.uid]
  if c and c.epoch == row.epoch and c.head == row.head and c.inbox_n == row.inbox_n and c.state == state
      and c.reason == reason and c.by == by then
    return c
  end
  want(row, state, reason, by, killed, cut_off)
  return nil
end

local function to_compose() return {'compose', wanted} end

-- Steered inputs that nobody read become one run, first behind the one that ended.
local function queue_unread(row, c)
  if not unread(row) then return end
  local first = call('ZRANGE', behind_key(row.suid), 0, 0, 'WITHSCORES')
  insert_run({
    tenant = row.tenant, id = c.follow_id, session = row.session, generation = row.generation, policy = 'steer',
    deadline_ms = row.deadline_ms, queue_timeout_ms = row.queue_timeout_ms, session_wait_ms = row.session_wait_ms,
    attempts_max = row.attempts_max, spec = c.follow_spec, trace = row.trace, rehearsal = row.rehearsal,
    created = c.follow_created, rank = first[2] and tonumber(first[2]) - 1 or nil
  })
end

-- The terminal step, after the terminal event was written: once, because the row is live before it.
local function close(row, state, reason, c)
  local had_slot = row.slot == 1
  leave_queue(row)
  set_state(row, state)
  set(row, {reason = reason, slot = 0, ended_at = WALL, result = c.result, checkpoint = false, checkpoint_seq = false,
    decisions = false})
  for _, name in ipairs(TIMERS) do set_timer(name, row.uid, nil) end
  call('ZADD', ENDED, WALL, row.uid)
  if tonumber(call('HGET', session_key(row.suid), 'generation') or 0) == row.generation then
    call('HSETNX', P .. 'history:' .. row.suid, row.n, c.entry)
    queue_unread(row, c)
  else
    call('ZADD', FORGOTTEN, WALL, row.uid)
  end
  set(row, {inbox_read = row.inbox_n})
  if had_slot then
    call('HDEL', session_key(row.suid), 'active')
    promote(row.suid)
  end
  changed(row)
end

-- Who tells of it is decided after: until then the end is unsaid (1; 2: it was cut off).
local function end_from_outside(row, c, left)
  local cut_off = row.state == 'running' and not left
  for event in string.gmatch(c.event, '[^\n]+') do write_event(row, event, row.epoch + 1) end
  set(row, {epoch = row.epoch + 1, claim = '', stop_by = c.by})
  close(row, c.state, c.reason, c)
  set(row, {unsaid = cut_off and 2 or 1})
  call('ZADD', P .. 'unsaid:' .. row.suid, row.ended_at, row.uid)
  call('SADD', UNSAID, row.suid)
end
