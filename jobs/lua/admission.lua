-- What the scripts that take jobs in share: what they refuse, and how a job is recorded.
-- requires: keys

-- What an idempotency key stands for: {'known' | 'key_reused', id of the job or batch}, nil for nothing.
local function known_by(tenant, key, digest)
  if key == '' then return nil end
  local known = redis.call('HMGET', idempotency_key(tenant, key), 'job', 'digest')
  return known[1] and {known[2] == digest and 'known' or 'key_reused', known[1]}
end

local function remember(tenant, key, digest, ttl_ms, id)
  if key == '' then return end
  redis.call('HSET', idempotency_key(tenant, key), 'job', id, 'digest', digest)
  redis.call('PEXPIRE', idempotency_key(tenant, key), ttl_ms)
end

-- Why so many jobs more are not taken in: {'over_quota', jobs in flight} | {'backlog_full', how long the last one
-- would wait, in ms}, nil when they are.
-- limits: max_in_flight, max_backlog_ms (0 for any), workers, more_urgent (the queues that are drained before this one)
local function refusal(tenant, queue, jobs, limits)
  local in_flight = redis.call('SCARD', inflight_key(tenant))
  if in_flight + jobs > limits.max_in_flight then return {'over_quota', tostring(in_flight)} end

  -- What waits before the job, at the pace of its queue; nothing is known before the first job or without workers.
  local pace = redis.call('HGET', PACE, queue)
  if not pace or limits.max_backlog_ms == 0 or limits.workers == 0 then return nil end
  local ahead = redis.call('ZCARD', queued_key(queue)) + jobs - 1
  for _, other in ipairs(limits.more_urgent) do ahead = ahead + redis.call('ZCARD', queued_key(other)) end
  local wait_ms = math.floor(ahead * pace / limits.workers)
  return wait_ms > limits.max_backlog_ms and {'backlog_full', tostring(wait_ms)} or nil
end

-- Record a job in state queued, and owe its publication.
-- new: tenant, queue, start_deadline_ms, webhook_url ('' for none), webhook_events, publish_grace_ms
-- place: its number among those that are taken in together.  batch: nil for none
local function record_job(id, spec, new, now, place, batch)
  local tenant, queue = new.tenant, new.queue
  redis.call('HSET', job_key(id), 'id', id, 'tenant', tenant, 'queue', queue, 'spec', spec, 'status', 'queued',
    'created_ms', now, 'attempt', 0, 'fence', 0, 'publishes', 0, 'version', 1)
  if new.webhook_url ~= '' then
    redis.call('HSET', job_key(id), 'webhook_url', new.webhook_url, 'webhook_events', new.webhook_events)
  end
  if batch then redis.call('HSET', job_key(id), 'batch', batch) end
  redis.call('SADD', inflight_key(tenant), id)
  add_to_log(jobs_key(tenant), id, now, job_key)
  redis.call('ZADD', queued_key(queue), exact_now_ms(place / 1000), id)
  redis.call('ZADD', DEADLINES, now + new.start_deadline_ms, id)
  redis.call('ZADD', OUTBOX, now + new.publish_grace_ms, id)
  redis.call('HINCRBY', TOTALS, 'created', 1)
end
