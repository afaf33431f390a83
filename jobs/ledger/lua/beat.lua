#!lua flags=allow-oom
-- BEAT: renew the lease, record progress, and report whether to stop.
-- ARGV: id, fence, token, lease_ms, stage, done, total, masks, node
-- Returns 'ok' | 'canceled' (stop, and finish as canceled) | 'drained' (stop, and hand the job back)
--       | 'fenced' (stop: you no longer hold the job)
-- requires: keys, jobs
local id = ARGV[1]
local key = job_key(id)
local job = read_job(id, {'status', 'fence', 'token', 'stage', 'done', 'total', 'masks', 'cancel', 'version'})
if not is_held(job, ARGV[2], ARGV[3]) then return fenced() end

local kept = redis.call('MGET', draining_key(ARGV[9]), CLOCK)
local drained_ms, now = kept[1], now_by(kept[2])
redis.call('ZADD', LEASES, now + ARGV[4], id)
if job.stage ~= ARGV[5] or job.done ~= ARGV[6] or job.total ~= ARGV[7] or job.masks ~= ARGV[8] then
  redis.call('HSET', key, 'stage', ARGV[5], 'done', ARGV[6], 'total', ARGV[7], 'masks', ARGV[8], 'version', (job.version or 1) + 1)
end
if job.cancel then return 'canceled' end
if drained_ms and tonumber(drained_ms) <= now then return 'drained' end
return 'ok'
