#!lua
-- Take what was asked of these workers: pairs of worker and `id\nquestion`.
local found = {}
for _, worker in ipairs(ARGV) do
  for _, one in ipairs(call('LPOP', P .. 'asked:' .. worker, 64) or {}) do
    found[#found + 1] = {worker, one}
  end
end
return found
