#!lua flags=allow-oom
-- BEAT: renew the lease, record progress, and report whether to stop.
-- ARGV: id, fence, token, lease_ms, stage, done, total, masks, node
-- Returns 'ok' | 'canceled' (stop, and finish as canceled) | 'drained' (stop, and hand the job back)
--       | 'fenced' (stop: you no longer hold the job)
-- requires: keys, jobs
local id = ARGV[1]
local key = job_key(id)
if not holds(id, ARGV[2], ARGV[3]) then return fenced() end

local now = now_ms()
redis.call('ZADD', LEASES, now + ARGV[4], id)
local before = redis.call('HMGET', key, 'stage', 'done', 'total', 'masks')
if before[1] ~= ARGV[5] or before[2] ~= ARGV[6] or before[3] ~= ARGV[7] or before[4] ~= ARGV[8] then
  redis.call('HSET', key, 'stage', ARGV[5], 'done', ARGV[6], 'total', ARGV[7], 'masks', ARGV[8])
  changed(id)
end
if redis.call('HEXISTS', key, 'cancel') == 1 then return 'canceled' end
local drained_ms = redis.call('GET', draining_key(ARGV[9]))
if drained_ms and tonumber(drained_ms) <= now then return 'drained' end
return 'ok'
