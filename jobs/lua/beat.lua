-- BEAT: keep the lease, take progress up and cancellation down.
-- ARGV: id, fence, lease_ms, stage, done, total, masks
-- Returns 'ok' | 'canceled' (stop, and finish as canceled) | 'fenced' (stop, the job is no longer yours)
local id = ARGV[1]
local key = job_key(id)
local job = redis.call('HMGET', key, 'status', 'fence', 'cancel')
if job[1] ~= 'processing' or job[2] ~= ARGV[2] then return 'fenced' end

redis.call('ZADD', 'mf:leases', now_ms() + ARGV[3], id)
redis.call('HSET', key, 'stage', ARGV[4], 'done', ARGV[5], 'total', ARGV[6], 'masks', ARGV[7])
if job[3] then return 'canceled' end
return 'ok'
