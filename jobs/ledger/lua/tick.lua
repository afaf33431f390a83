#!lua flags=allow-oom
-- TICK: a courier's look at the clock, before it compares any time.  It notices steps of Redis' clock, and pauses.
--
-- The ledger goes by Redis' TIME plus an offset.  A courier compares TIME with its own monotonic clock between two looks.
-- When they differ by more than step_ms, and no other courier has looked meanwhile, TIME was set, or is another server's:
-- the offset takes the step back, so that leases, deadlines and due times keep their distance.  The offset then shrinks to
-- nothing by a tenth of the time that passes.
-- After a step, or when no courier could look for longer than step_ms (Redis was away), each running job's lease lasts at
-- least respite_ms, in which its worker renews it or hands the job back; after a step also no longer, since it may have
-- been renewed by the wrong time.
-- ARGV: the step that this courier has seen, in ms ('' if it looks for the first time), Redis' time at its last look,
--       step_ms, respite_ms
-- Returns {Redis' time now, the step that was taken back, how long no courier had looked, how much was written before and
--          is lost}, all in ms
-- requires: keys
local raw, own, last = raw_ms(), tonumber(ARGV[1]), tonumber(ARGV[2])
local step_ms, respite_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local seen, offset = string.match(redis.call('GET', CLOCK) or '', '^(%S+) (%S+)$')
seen, offset = tonumber(seen or raw), tonumber(offset or 0)

local passed, step, lost = raw - seen, 0, 0
if own then
  if math.abs(own) > step_ms and math.abs(passed) > step_ms then step = own end
  -- Each look is written: an older one than this courier's last is from before a write that is lost.
  if math.abs(own) <= step_ms and last > seen then lost = last - seen end
elseif passed < -step_ms then
  step = passed  -- the clock never goes back by itself
end
passed, offset = passed - step, offset - step

local slewed = math.min(math.abs(offset), math.floor(math.max(passed, 0) / 10))
offset = offset > 0 and offset - slewed or offset + slewed
redis.call('SET', CLOCK, string.format('%.0f %.0f', raw, offset))

if step ~= 0 or passed > step_ms then
  local until_ms = raw + offset + respite_ms
  for _, id in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    if step ~= 0 or tonumber(redis.call('ZSCORE', LEASES, id)) < until_ms then redis.call('ZADD', LEASES, until_ms, id) end
  end
end
return {tostring(raw), tostring(step), tostring(passed), tostring(lost)}
