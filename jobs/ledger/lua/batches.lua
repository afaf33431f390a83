-- Batches: their counts move with their jobs, and the last end completes them.
-- requires: keys, webhooks
--
-- A batch counts its jobs by their state, in one hash: one look tells how far it is, whatever becomes of their records.

-- The last job of a batch has ended: its record gets an expiry, and the webhook that was asked for is queued.
local function complete_batch(id, now, retention_ms)
  local key = batch_key(id)
  local batch = redis.call('HMGET', key, 'tenant', 'webhook_url')
  local number = redis.call('HINCRBY', key, 'ends', 1)
  redis.call('HSET', key, 'ended_ms', now)
  redis.call('PEXPIRE', key, retention_ms)
  redis.call('PEXPIRE', batch_jobs_key(id), retention_ms)
  if batch[2] then
    queue_delivery(delivery_id(id, number, 'completed'), batch[1], id, 'completed', batch[2], now)
    keep_record_for(id, retention_ms)
  end
end

-- A job of a batch goes from one state to another.  retention_ms: needed where it ends.
local function move_in_batch(id, from, to, now, retention_ms)
  local key = batch_key(id)
  if redis.call('EXISTS', key) == 0 then return end  -- a job that is retried may outlive it
  redis.call('HINCRBY', key, from, -1)
  redis.call('HINCRBY', key, to, 1)
  local open = redis.call('HMGET', key, 'queued', 'processing')
  if open[1] + open[2] == 0 then complete_batch(id, now, retention_ms) end
end

-- A job of a batch is queued once more.  A batch that was complete is so no longer, and whoever was not told yet is not.
local function reopen_batch(id, now, retention_ms)
  local key = batch_key(id)
  local batch = redis.call('HMGET', key, 'tenant', 'ends', 'ended_ms')
  if not batch[3] then return end
  redis.call('HDEL', key, 'ended_ms')
  drop_delivery(delivery_id(id, batch[2], 'completed'), batch[1], 'A job of the batch was retried before this was sent.', now, retention_ms)
  redis.call('PERSIST', key)
  redis.call('PERSIST', batch_jobs_key(id))
end
