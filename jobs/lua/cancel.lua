-- CANCEL: end a queued job at once; ask the worker of a running one to stop.
-- ARGV: id, tenant, retention_ms
-- Returns 'canceled' | 'requested' | 'ended' | 'unknown'
local id = ARGV[1]
local key = job_key(id)
local job = redis.call('HMGET', key, 'status', 'tenant')
if not job[1] or job[2] ~= ARGV[2] then return 'unknown' end
if is_ended(job[1]) then return 'ended' end
if job[1] == 'queued' then
  end_job(id, 'canceled', now_ms(), ARGV[3], '', '', '')
  return 'canceled'
end
redis.call('HSET', key, 'cancel', 1)
changed(id)
return 'requested'
