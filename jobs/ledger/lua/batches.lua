-- Batches: their counts change with their jobs' states, and the last job to end completes them.
-- requires: keys, bytes, webhooks
--
-- A batch counts its jobs by state in one hash: one read shows its progress, even after their records have expired.

-- Complete a batch whose last job has ended: give its record an expiry, and queue its webhook if it has one.
local function complete_batch(id, now, retention_ms)
  local key = batch_key(id)
  local batch = redis.call('HMGET', key, 'tenant', 'bytes', 'held', 'webhook_url')
  local number = redis.call('HINCRBY', key, 'ends', 1)
  redis.call('HSET', key, 'ended_ms', now)
  local life_ms = life_after_end_ms(retention_ms, batch[4])
  expire_record(id, batch, now, now + life_ms, life_ms)
  redis.call('PEXPIRE', batch_jobs_key(id), retention_ms)
  redis.call('ZREM', BATCHES, id)
  if batch[4] then queue_delivery(delivery_id(id, number, 'completed'), batch[1], id, 'completed', batch[4], now) end
end

-- Count the move of one of a batch's jobs between states.  retention_ms: needed when the job ends.
local function move_in_batch(id, from, to, now, retention_ms)
  local key = batch_key(id)
  if redis.call('EXISTS', key) == 0 then return end  -- a retried job may outlive its batch
  redis.call('HINCRBY', key, from, -1)
  redis.call('HINCRBY', key, to, 1)
  local open = redis.call('HMGET', key, 'queued', 'processing')
  if open[1] + open[2] == 0 then complete_batch(id, now, retention_ms) end
end

-- Reopen a completed batch, one of whose jobs was retried; its webhook is dropped if it was not sent yet.
local function reopen_batch(id, now, retention_ms)
  local key = batch_key(id)
  local batch = redis.call('HMGET', key, 'tenant', 'ends', 'ended_ms', 'created_ms', 'bytes', 'held')
  if not batch[3] then return end
  redis.call('HDEL', key, 'ended_ms')
  local completion = delivery_id(id, batch[2], 'completed')
  drop_delivery(completion, batch[1], 'A job of the batch was retried before this was sent.', now, retention_ms)
  redis.call('PERSIST', key)
  redis.call('PERSIST', batch_jobs_key(id))
  redis.call('ZADD', BATCHES, batch[4], id)
  if recount(batch[1], {batch[5], batch[6]}, tonumber(batch[5]), 'live') then redis.call('HSET', key, 'held', 'live') end
end
