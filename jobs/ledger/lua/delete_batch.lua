#!lua flags=allow-oom
-- DELETE_BATCH: delete a batch that has ended, in two steps with the deletion of its jobs and objects by a courier between.
-- ARGV: batch, tenant, step ('begin' | 'end'), kept_ms (for the courier; the record is kept so long at least)
-- Returns 'begun' | 'deleted' | 'not_ended' | 'unknown'
-- requires: keys, bytes, webhooks
local id, tenant = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', batch_key(id), 'tenant', 'ended_ms', 'bytes', 'held')
if batch[1] ~= tenant then return 'unknown' end
if not batch[2] then return 'not_ended' end
if ARGV[3] == 'begin' then
  redis.call('HSET', batch_key(id), 'deleting', 1)
  for _, key in ipairs({batch_key(id), batch_jobs_key(id), batch_pages_key(id)}) do
    if redis.call('PTTL', key) < tonumber(ARGV[4]) then redis.call('PEXPIRE', key, ARGV[4]) end
  end
  redis.call('ZADD', BATCH_WORK, now_ms(), id)
  return 'begun'
end
for _, delivery in ipairs(redis.call('LRANGE', deliveries_of_key(id), 0, -1)) do
  local url = redis.call('HGET', delivery_key(delivery), 'url')
  if url then unqueue_delivery(delivery, tenant, host_of(url)) end
  redis.call('ZREM', log_key(tenant), delivery)
  redis.call('DEL', delivery_key(delivery), delivery_attempts_key(delivery))
end
recount(tenant, {batch[3], batch[4]}, 0, 'live')
redis.call('DEL', batch_key(id), batch_jobs_key(id), batch_pages_key(id), deliveries_of_key(id))
redis.call('ZREM', BATCH_WORK, id)
return 'deleted'
