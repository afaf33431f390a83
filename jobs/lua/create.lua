-- CREATE: record a job, once for each idempotency key.
-- ARGV: id, tenant, queue, spec, start_deadline_ms, webhook_url, webhook_events,
--       idempotency_key ('' for none), body_digest, idempotency_ttl_ms, max_in_flight, publish_grace_ms,
--       max_backlog_ms (0 for any), workers, the queues that are drained before this one …
-- Returns {'created', id} | {'known', id} | {'key_reused', id} | {'over_quota', jobs in flight}
--         | {'backlog_full', how long the job would wait, in ms}
local id, tenant, queue, spec = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now = now_ms()

-- The same call once more, because its answer was lost on the way.
if redis.call('EXISTS', job_key(id)) == 1 then return {'created', id} end

local idempotency = 'mf:idempotency:' .. tenant .. ':' .. ARGV[8]
if ARGV[8] ~= '' then
  local known = redis.call('HMGET', idempotency, 'job', 'digest')
  if known[1] then
    return {known[2] == ARGV[9] and 'known' or 'key_reused', known[1]}
  end
end

local in_flight = redis.call('SCARD', inflight_key(tenant))
if in_flight >= tonumber(ARGV[11]) then return {'over_quota', tostring(in_flight)} end

-- What waits before the job, at the pace of its queue; nothing is known before the first job or without workers.
local pace, max_backlog_ms, workers = redis.call('HGET', 'mf:pace', queue), tonumber(ARGV[13]), tonumber(ARGV[14])
if pace and max_backlog_ms > 0 and workers > 0 then
  local ahead = redis.call('ZCARD', queued_key(queue))
  for i = 15, #ARGV do ahead = ahead + redis.call('ZCARD', queued_key(ARGV[i])) end
  local wait_ms = math.floor(ahead * pace / workers)
  if wait_ms > max_backlog_ms then return {'backlog_full', tostring(wait_ms)} end
end

redis.call('HSET', job_key(id), 'id', id, 'tenant', tenant, 'queue', queue, 'spec', spec, 'status', 'queued',
  'created_ms', now, 'attempt', 0, 'fence', 0, 'publishes', 0, 'version', 1)
if ARGV[6] ~= '' then redis.call('HSET', job_key(id), 'webhook_url', ARGV[6], 'webhook_events', ARGV[7]) end
if ARGV[8] ~= '' then
  redis.call('HSET', idempotency, 'job', id, 'digest', ARGV[9])
  redis.call('PEXPIRE', idempotency, ARGV[10])
end
redis.call('SADD', inflight_key(tenant), id)
redis.call('ZADD', 'mf:jobs:' .. tenant, now, id)
redis.call('ZADD', queued_key(queue), exact_now_ms(), id)
redis.call('ZADD', 'mf:deadlines', now + ARGV[5], id)
redis.call('ZADD', 'mf:outbox', now + ARGV[12], id)
redis.call('HINCRBY', 'mf:totals', 'created', 1)

-- The tenant's list forgets what has expired: two looks for each new job keep it from growing.
for _, oldest in ipairs(redis.call('ZRANGE', 'mf:jobs:' .. tenant, 0, 1)) do
  if redis.call('EXISTS', job_key(oldest)) == 0 then redis.call('ZREM', 'mf:jobs:' .. tenant, oldest) end
end
return {'created', id}
