-- Batches: their counts change with their jobs' states, and the last job to end completes them.
-- requires: keys, bytes, webhooks
--
-- A batch counts its jobs by state in one hash: one read shows its progress, even after their records have expired.
--
-- One from a prefix or a manifest has a source.  Couriers expand it: step by step, each of which advances its cursor in the
-- script that records the jobs; so two couriers cannot both take a step, and one that dies has taken it whole or not at all.
-- Its jobs are numbered from 1, in the order of the source.  As they end they are collected: told of in a page in the store.
-- A courier completes it when all were.

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

-- Begin to expand a batch that was just recorded.  source: what is shown of it; plan: all that couriers need.
local function open_expansion(id, tenant, source, plan, now)
  redis.call('HSET', batch_key(id), 'source', source, 'plan', plan, 'expansion', 'open', 'cursor', '', 'listed', 0, 'rejected', 0,
    'annotations', 0)
  redis.call('SADD', expanding_key(tenant), id)
  redis.call('ZADD', BATCH_WORK, now, id)
end

-- Whether a batch can take a step of its expansion from a cursor: it is open, and no other courier has taken it.
local function is_at_step(id, cursor)
  local batch = redis.call('HMGET', batch_key(id), 'expansion', 'cursor')
  return batch[1] == 'open' and batch[2] == cursor
end

-- Note a step whose jobs are recorded.  step: cursor, next, listed (in all so far), rejected (a list of JSON: what could not
-- become a job), ends (whether it was the last one), error_code, error_detail ('' for none: why it was).
local function note_step(id, step, jobs)
  local key = batch_key(id)
  redis.call('HSET', key, 'cursor', step.next, 'listed', step.listed)
  if jobs > 0 then redis.call('HINCRBY', key, 'queued', jobs) end
  if #step.rejected > 0 then
    redis.call('RPUSH', batch_ended_key(id), unpack(step.rejected))
    redis.call('HINCRBY', key, 'failed', #step.rejected)
    redis.call('HINCRBY', key, 'rejected', #step.rejected)
  end
  if step.ends then redis.call('HSET', key, 'expansion', step.error_code == '' and 'done' or 'failed') end
  if step.error_code ~= '' then redis.call('HSET', key, 'error_code', step.error_code, 'error_detail', step.error_detail) end
end

-- Let a job of an expanded batch be collected.
local function to_be_collected(id, job)
  local number = redis.call('ZSCORE', batch_open_key(id), job)
  if not number then return end
  redis.call('ZREM', batch_open_key(id), job)
  redis.call('RPUSH', batch_ended_key(id), job .. ' ' .. number)
end

-- Count the move of one of a batch's jobs between states.  retention_ms, job (its id): needed when the job ends.
local function move_in_batch(id, from, to, now, retention_ms, job)
  local key = batch_key(id)
  if redis.call('EXISTS', key) == 0 then return end  -- a retried job may outlive its batch
  redis.call('HINCRBY', key, from, -1)
  redis.call('HINCRBY', key, to, 1)
  local open = redis.call('HMGET', key, 'queued', 'processing', 'source')
  if open[3] then
    if job then to_be_collected(id, job) end
    return
  end
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
