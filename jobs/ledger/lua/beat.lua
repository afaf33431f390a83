#!lua flags=allow-oom
-- BEAT: renew the lease, record progress, and report whether to stop.
-- ARGV: id, fence, token, lease_ms, stage, done, total, masks, node
-- Returns 'ok' | 'canceled' (stop, and finish as canceled) | 'drained' (stop, and hand the job back)
--       | 'fenced' (stop: you no longer hold the job)
-- requires: keys, jobs
local id = ARGV[1]
local key = job_key(id)
local job = redis.call('HMGET', key, 'status', 'fence', 'token', 'stage', 'done', 'total', 'masks', 'cancel', 'version')
if not is_held(job, ARGV[2], ARGV[3]) then return fenced() end

local now = now_ms()
redis.call('ZADD', LEASES, now + ARGV[4], id)
if job[4] ~= ARGV[5] or job[5] ~= ARGV[6] or job[6] ~= ARGV[7] or job[7] ~= ARGV[8] then
  redis.call('HSET', key, 'stage', ARGV[5], 'done', ARGV[6], 'total', ARGV[7], 'masks', ARGV[8], 'version', (job[9] or 1) + 1)
end
if job[8] then return 'canceled' end
local drained_ms = redis.call('GET', draining_key(ARGV[9]))
if drained_ms and tonumber(drained_ms) <= now then return 'drained' end
return 'ok'
