#!lua flags=allow-oom
-- CANCEL_BATCH: let a batch create no further jobs; those that it has are canceled one by one.
-- ARGV: batch, tenant
-- Returns 'requested' | 'ended' | 'unknown'
-- requires: keys
local id = ARGV[1]
local batch = redis.call('HMGET', batch_key(id), 'tenant', 'ended_ms', 'expansion', 'deleting')
if batch[1] ~= ARGV[2] or batch[4] then return 'unknown' end
if batch[2] then return 'ended' end
redis.call('HSET', batch_key(id), 'cancel', 1)
if batch[3] then
  if batch[3] == 'open' then redis.call('HSET', batch_key(id), 'expansion', 'canceled') end
  redis.call('ZADD', BATCH_WORK, now_ms(), id)
end
return 'requested'
