-- REAP: take back jobs whose worker no longer beats, and expire those that waited too long.
-- ARGV: limit, max_attempts, retention_ms
-- Returns {requeued, failed, canceled, expired}
local now = now_ms()
local requeued, failed, canceled, expired = 0, 0, 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'mf:leases', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local job = redis.call('HMGET', job_key(id), 'attempt', 'cancel')
  if not job[1] then
    redis.call('ZREM', 'mf:leases', id)
  elseif job[2] then
    end_job(id, 'canceled', now, ARGV[3], '', '', '')
    canceled = canceled + 1
  elseif tonumber(job[1]) >= tonumber(ARGV[2]) then
    end_job(id, 'failed', now, ARGV[3], 'attempts_exhausted', 'The job broke off ' .. job[1] .. ' times.', '')
    failed = failed + 1
  else
    requeue_job(id, 'lease_ran_out', now, now)
    redis.call('HINCRBY', 'mf:totals', 'requeued', 1)
    requeued = requeued + 1
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'mf:deadlines', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  if redis.call('HGET', job_key(id), 'status') == 'queued' then
    end_job(id, 'expired', now, ARGV[3], 'start_deadline_passed', 'No worker was free before start_deadline_s.', '')
    expired = expired + 1
  else
    redis.call('ZREM', 'mf:deadlines', id)
  end
end
return {requeued, failed, canceled, expired}
