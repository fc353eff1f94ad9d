-- What a stop does to a live run: it ends now, or is flagged for its holder. Planned, then carried out.

-- The composition where the run ends now, false where it is flagged or left; `wanted` where one is missing.
local function plan_stop(row, reason, by)
  if decide(row, 'stop') == 'cancelled' then return plan_end(row, 'cancelled', reason, by, false) end
  return false
end

local function carry_out_stop(row, c, reason, by)
  if c then
    end_from_outside(row, c, false)
  elseif row.state == 'running' and not row.stopping then
    set(row, {stopping = reason, stop_by = by, stop_at = WALL})
    set_timer('stop', row.uid, NOW)
    wake('control')
    wake_worker('control', row.worker)
    if row.tenant ~= SYNTHETIC then -- its stop makes no supervisor impatient
      wake('stop')
      wake_worker('stop', row.worker)
    end
  end
end
