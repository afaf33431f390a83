#!lua flags=allow-oom
-- CANCEL: end a queued job at once; ask the worker of a running one to stop.
-- ARGV: id, tenant, retention_ms
-- Returns 'canceled' | 'requested' | 'ended' | 'unknown'
-- requires: keys, jobs
local id = ARGV[1]
local status = owned(id, ARGV[2])
if not status then return 'unknown' end
if is_ended(status) then return 'ended' end
if status == 'queued' then
  cancel_job(id, read_job(id), now_ms(), ARGV[3])
  return 'canceled'
end
redis.call('HSET', job_key(id), 'cancel', 1)
changed(id)
return 'requested'
