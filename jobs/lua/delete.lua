-- DELETE: forget an ended job and its webhooks, in two steps with the removal of its objects between them.
-- From the first step on RETRY refuses the job, so that no attempt writes what is just being removed.
-- ARGV: id, tenant, step ('begin' | 'end')
-- Returns 'begun' | 'deleted' | 'not_ended' | 'unknown' (or this very step was run before)
local id, tenant = ARGV[1], ARGV[2]
local job = redis.call('HMGET', job_key(id), 'status', 'tenant')
if not job[1] or job[2] ~= tenant then return 'unknown' end
if not is_ended(job[1]) then return 'not_ended' end
if ARGV[3] == 'begin' then
  redis.call('HSET', job_key(id), 'deleting', 1)
  return 'begun'
end
for _, delivery in ipairs(redis.call('LRANGE', 'mf:told:' .. id, 0, -1)) do
  local url = redis.call('HGET', delivery_key(delivery), 'url')
  if url then unqueue_delivery(delivery, tenant, host_of(url)) end
  redis.call('ZREM', 'mf:deliveries:' .. tenant, delivery)
  redis.call('DEL', delivery_key(delivery), tries_key(delivery))
end
redis.call('DEL', job_key(id), attempts_key(id), 'mf:told:' .. id)
redis.call('ZREM', 'mf:jobs:' .. tenant, id)
return 'deleted'
