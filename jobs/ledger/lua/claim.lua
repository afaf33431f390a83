#!lua flags=allow-oom
-- CLAIM: give a queued job to a worker, for as long as it renews the lease.
-- ARGV: id, worker, lease_ms, max_attempts, retention_ms, token (of this call: a second run finds its own claim)
-- Returns {'claimed', the record's fields and values …} | {'unknown'} | {'ended'} | {'held'}
-- requires: keys, webhooks, batches, jobs
local id, worker, max_attempts = ARGV[1], ARGV[2], tonumber(ARGV[4])
local key = job_key(id)
local now = now_ms()
local job = redis.call('HMGET', key, 'status', 'attempt', 'queue', 'token', 'tenant', 'webhook_url', 'webhook_events', 'ends', 'batch')
local status, attempt = job[1], tonumber(job[2])

if not status then return {'unknown'} end
if is_ended(status) then return {'ended'} end

local function claimed()
  local fields = redis.call('HGETALL', key)
  table.insert(fields, 1, 'claimed')
  return fields
end

if status == 'processing' then return job[4] == ARGV[6] and claimed() or {'held'} end

local deadline = redis.call('ZSCORE', DEADLINES, id)
if deadline and tonumber(deadline) <= now then
  expire(id, now, ARGV[5])
  return {'ended'}
end
if attempt >= max_attempts then
  exhaust(id, attempt, now, ARGV[5])
  return {'ended'}
end

redis.call('HSET', key, 'status', 'processing', 'worker', worker, 'stage', 'fetching', 'claimed_ms', now, 'token', ARGV[6])
redis.call('HSETNX', key, 'started_ms', now)
redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HINCRBY', key, 'fence', 1)
redis.call('HDEL', key, 'done', 'total', 'masks')
redis.call('ZADD', LEASES, now + ARGV[3], id)
redis.call('ZREM', DEADLINES, id)
redis.call('ZREM', OUTBOX, id)
redis.call('ZREM', queued_key(job[3]), id)

if job[9] then move_in_batch(job[9], 'queued', 'processing', now) end

begin_attempt(id, attempt + 1, worker, now)
if attempt == 0 and job[6] and asked_for(job[7], 'started') then
  local delivery = delivery_id(id, tonumber(job[8] or 0) + 1, 'started')
  -- After an attempt that was handed back uncharged, the next one is the first again.
  if redis.call('EXISTS', delivery_key(delivery)) == 0 then queue_delivery(delivery, job[5], id, 'started', job[6], now) end
end
changed(id)
return claimed()
