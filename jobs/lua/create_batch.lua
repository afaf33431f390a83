-- CREATE_BATCH: record a batch and all its jobs, or nothing of it, once for each idempotency key.
-- ARGV: id, JSON, job id, spec, job id, spec, …
-- The JSON: tenant, queue, start_deadline_ms, webhook_url, webhook_events (of each job), completed_url ('' for none: where
--   the end of the batch is told), metadata (JSON), idempotency_key ('' for none), body_digest, idempotency_ttl_ms,
--   publish_grace_ms, and the limits: max_in_flight, max_backlog_ms (0 for any), workers, more_urgent
-- Returns {'created', id} | {'known', id} | {'key_reused', id} | {'over_quota', jobs in flight}
--         | {'backlog_full', how long the last job would wait, in ms}
-- A full Redis refuses it, for it has no flag: nothing new is taken in then.
-- requires: keys, admission
local id, new, now = ARGV[1], cjson.decode(ARGV[2]), now_ms()
local jobs = (#ARGV - 2) / 2

-- The same call once more, because its answer was lost on the way.
if redis.call('EXISTS', batch_key(id)) == 1 then return {'created', id} end

local answered = known_by(new.tenant, new.idempotency_key, new.body_digest) or refusal(new.tenant, new.queue, jobs, new)
if answered then return answered end

redis.call('HSET', batch_key(id), 'tenant', new.tenant, 'created_ms', now, 'metadata', new.metadata, 'ends', 0,
  'queued', jobs, 'processing', 0, 'succeeded', 0, 'failed', 0, 'canceled', 0, 'expired', 0)
if new.completed_url ~= '' then redis.call('HSET', batch_key(id), 'webhook_url', new.completed_url) end
for place = 0, jobs - 1 do
  local job = ARGV[2 * place + 3]
  redis.call('RPUSH', batch_jobs_key(id), job)
  record_job(job, ARGV[2 * place + 4], new, now, place, id)
end
remember(new.tenant, new.idempotency_key, new.body_digest, new.idempotency_ttl_ms, id)
return {'created', id}
