-- CREATE: record a job, once for each idempotency key.
-- ARGV: id, tenant, queue, spec, start_deadline_ms, webhook_url, webhook_events,
--       idempotency_key ('' for none), body_digest, idempotency_ttl_ms, max_in_flight, publish_grace_ms,
--       max_backlog_ms (0 for any), workers, the queues that are drained before this one …
-- Returns {'created', id} | {'known', id} | {'key_reused', id} | {'over_quota', jobs in flight}
--         | {'backlog_full', how long the job would wait, in ms}
-- A full Redis refuses it, for it has no flag: nothing new is taken in then.
-- requires: keys, admission
local id = ARGV[1]
local new = {tenant = ARGV[2], queue = ARGV[3], start_deadline_ms = ARGV[5], webhook_url = ARGV[6],
  webhook_events = ARGV[7], publish_grace_ms = ARGV[12]}
local limits = {max_in_flight = tonumber(ARGV[11]), max_backlog_ms = tonumber(ARGV[13]), workers = tonumber(ARGV[14]),
  more_urgent = {unpack(ARGV, 15)}}

-- The same call once more, because its answer was lost on the way.
if redis.call('EXISTS', job_key(id)) == 1 then return {'created', id} end

local answered = known_by(new.tenant, ARGV[8], ARGV[9]) or refusal(new.tenant, new.queue, 1, limits)
if answered then return answered end
record_job(id, ARGV[4], new, now_ms(), 0)
remember(new.tenant, ARGV[8], ARGV[9], ARGV[10], id)
return {'created', id}
