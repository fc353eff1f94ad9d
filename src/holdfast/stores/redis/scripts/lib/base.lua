-- Names of keys, the clock, wakes. KEYS[1] is `{namespace}:meta`; every key has its hash tag.
local call = redis.call
local P = string.sub(KEYS[1], 1, -5)
local META = KEYS[1]

-- Keys of another layout are not touched, not even by a process that had them open when a later version moved them on.
local skipped
do
  local meta = call('HMGET', META, 'layout', 'skipped')
  if (meta[1] or LAYOUT) ~= LAYOUT then
    return redis.error_reply('LAYOUT the keys have layout ' .. meta[1] .. ', this process has ' .. LAYOUT)
  end
  skipped = tonumber(meta[2] or 0)
end

-- WALL is what people read. NOW is what timers run on: TIME without the time in which nobody reaped.
local WALL, NOW
do
  local t = call('TIME')
  WALL = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
  NOW = WALL - skipped
end

-- A tenant may hold any character: its length before it makes the name unambiguous.
local function uid_of(tenant, id) return #tenant .. ':' .. tenant .. '/' .. id end
local function run_key(uid) return P .. 'run:' .. uid end
local function log_key(uid) return P .. 'log:' .. uid end
local function inbox_key(uid) return P .. 'inbox:' .. uid end
local function session_key(suid) return P .. 'session:' .. suid end
local function behind_key(suid) return P .. 'behind:' .. suid end
local function runs_key(tenant, state) return P .. 'runs' .. (state and '.' .. state or '') .. ':' .. tenant end
local function ready_key(tenant) return P .. 'ready:' .. tenant end
local QUEUE, TURNS = P .. 'queue', P .. 'turns'
local ENDED, FORGOTTEN, GONE, DELETING = P .. 'ended', P .. 'forgotten', P .. 'gone', P .. 'deleting'
local UNSAID, DELETED_SESSIONS = P .. 'unsaid', P .. 'deleted_sessions'

-- Timers are sorted sets of runs by due time on NOW; a run without that timer is not in it.
local TIMERS = {'listener', 'stop', 'deadline', 'wait', 'lease'}
local function timer_key(name) return P .. 'due:' .. name end
local function due(name, uid) return tonumber(call('ZSCORE', timer_key(name), uid) or nil) end
local function set_timer(name, uid, at)
  if at then call('ZADD', timer_key(name), at, uid) else call('ZREM', timer_key(name), uid) end
end

-- Runs by state, as admission and health see them; synthetic runs (domain.ids) take nobody's place.
local SYNTHETIC = '::synthetic'
local function count(tenant, state, by)
  if tenant ~= SYNTHETIC then call('HINCRBY', P .. 'counts', state, by) end
end

-- A wake once per step and topic. Of a log it says the head, never the events: slow subscribers are cut by size.
local woken = {}
local function wake(topic, head)
  if woken[topic] then return end
  woken[topic] = true
  call('PUBLISH', P .. (head and 'r:' or 'w:') .. topic, head or '')
end

-- Of what concerns one worker. How many heard it.
local function wake_worker(topic, worker) return call('PUBLISH', P .. 't:' .. topic .. '@' .. worker, '') end

-- There is work to claim. Two of those that found none are woken and not all, else each run would cost as many claims
-- as there are idle workers; the second in case that the first does not take it. Others ask within a second anyway.
local IDLE = P .. 'idle'
local function wake_idle()
  wake('ready')
  local heard = 0
  while heard < 2 do
    local worker = call('SPOP', IDLE)
    if not worker then return end
    heard = heard + math.min(1, wake_worker('ready', worker)) -- nobody hears it: that worker has ended
  end
end
