-- RETRY: queue a failed job once more, with all its attempts before it.
-- ARGV: id, tenant, start_deadline_ms, max_in_flight, token (of this call: a second run finds what the first did),
--       retention_ms
-- Returns 'queued' | 'not_failed' | 'unknown' | 'over_quota'
local id, tenant = ARGV[1], ARGV[2]
local key = job_key(id)
local job = redis.call('HMGET', key, 'status', 'tenant', 'deleting', 'retry', 'batch')
if not job[1] or job[2] ~= tenant then return 'unknown' end
if job[4] == ARGV[5] then return 'queued' end
if job[1] ~= 'failed' or job[3] then return 'not_failed' end
if redis.call('SCARD', inflight_key(tenant)) >= tonumber(ARGV[4]) then return 'over_quota' end

local now = now_ms()
redis.call('PERSIST', key)
redis.call('PERSIST', attempts_key(id))
redis.call('HDEL', key, 'error_code', 'error_detail', 'ended_ms', 'started_ms', 'cancel')
redis.call('HSET', key, 'attempt', 0, 'retry', ARGV[5])
redis.call('SADD', inflight_key(tenant), id)
redis.call('ZADD', 'mf:deadlines', now + ARGV[3], id)
redis.call('HINCRBY', 'mf:totals', 'retried', 1)
requeue_job(id, 'retried', now, now)
if job[5] then reopen_batch(job[5], now, ARGV[6]) end
return 'queued'
