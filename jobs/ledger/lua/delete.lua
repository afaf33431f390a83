#!lua flags=allow-oom
-- DELETE: delete an ended job's record and webhooks, in two steps with the deletion of its objects between them.
-- From the first step on, RETRY rejects the job, so that no attempt writes what is being deleted.
-- ARGV: id, tenant, step ('begin' | 'end')
-- Returns 'begun' | 'deleted' | 'not_ended' | 'unknown' (there is none, or it was deleted before)
-- requires: keys, bytes, webhooks, jobs
local id, tenant = ARGV[1], ARGV[2]
local status = owned(id, tenant)
if not status then return 'unknown' end
if not is_ended(status) then return 'not_ended' end
if ARGV[3] == 'begin' then
  redis.call('HSET', job_key(id), 'deleting', 1)
  return 'begun'
end
for _, delivery in ipairs(redis.call('LRANGE', deliveries_of_key(id), 0, -1)) do
  local url = redis.call('HGET', delivery_key(delivery), 'url')
  if url then unqueue_delivery(delivery, tenant, host_of(url)) end
  redis.call('ZREM', log_key(tenant), delivery)
  redis.call('DEL', delivery_key(delivery), delivery_attempts_key(delivery))
end
recount(tenant, redis.call('HMGET', job_key(id), 'bytes', 'held'), 0, 'live')
redis.call('DEL', job_key(id), attempts_key(id), deliveries_of_key(id))
redis.call('ZREM', jobs_key(tenant), id)
return 'deleted'
