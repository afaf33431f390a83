#!lua flags=allow-oom
-- RETRY: queue a failed job again, with a full number of attempts.
-- ARGV: id, tenant, start_deadline_ms, max_in_flight, token (of this call: a second run finds what the first did),
--       retention_ms
-- Returns 'queued' | 'not_failed' | 'unknown' | 'over_quota' | 'of_batch' (of a batch from a source: it is told of as failed)
-- requires: keys, bytes, batches, turns, jobs
local id, tenant = ARGV[1], ARGV[2]
local key = job_key(id)
local status = owned(id, tenant)
if not status then return 'unknown' end
local job = redis.call('HMGET', key, 'deleting', 'retry', 'batch', 'bytes', 'held', 'error_detail')
if job[2] == ARGV[5] then return 'queued' end
if status ~= 'failed' or job[1] then return 'not_failed' end
if job[3] and redis.call('HEXISTS', batch_key(job[3]), 'source') == 1 then return 'of_batch' end
local in_flight, now = redis.call('SCARD', inflight_key(tenant)), now_ms()
if in_flight >= tonumber(ARGV[4]) then return 'over_quota' end

if in_flight == 0 then keep_tenant(tenant, now) end
redis.call('PERSIST', key)
redis.call('PERSIST', attempts_key(id))
local bytes = (job[4] or 0) - #(job[6] or '')
if recount(tenant, {job[4], job[5]}, bytes, 'live') then redis.call('HSET', key, 'bytes', bytes, 'held', 'live') end
redis.call('HDEL', key, 'error_code', 'error_detail', 'ended_ms', 'started_ms', 'cancel')
redis.call('HSET', key, 'attempt', 0, 'retry', ARGV[5], 'start_by_ms', now + ARGV[3])
redis.call('SADD', inflight_key(tenant), id)
redis.call('ZADD', DEADLINES, now + ARGV[3], id)
redis.call('HINCRBY', TOTALS, 'retried', 1)
local record = read_job(id)
queue_again(id, record, 'retried', now)
join_turn(record.queue, tenant, id, record.created_ms)
take_turns(record.queue, tenant)
if job[3] then reopen_batch(job[3], now, ARGV[6]) end
return 'queued'
