#!lua flags=allow-oom
-- REAP: take back jobs whose lease ran out, and expire jobs that waited too long.
-- ARGV: limit, max_attempts, retention_ms
-- Returns {requeued, failed, canceled, expired}
-- requires: keys, jobs
local now = now_ms()
local requeued, failed, canceled, expired = 0, 0, 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local job = read_job(id)
  if not job.status then
    redis.call('ZREM', LEASES, id)
  elseif not job.cancel and tonumber(job.attempt) >= tonumber(ARGV[2]) then
    exhaust(id, job, now, ARGV[3])
    failed = failed + 1
  elseif hand_back(id, job, 'lease_ran_out', now, now, ARGV[3]) then
    redis.call('HINCRBY', TOTALS, 'requeued', 1)
    requeued = requeued + 1
  else
    canceled = canceled + 1
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local job = read_job(id)
  if job.status == 'queued' then
    expire(id, job, now, ARGV[3])
    expired = expired + 1
  else
    redis.call('ZREM', DEADLINES, id)
  end
end
return {requeued, failed, canceled, expired}
