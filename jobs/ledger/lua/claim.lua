#!lua flags=allow-oom
-- CLAIM: give the next waiting job to a worker, for as long as it renews the lease.
-- ARGV: worker, lease_ms, max_attempts, retention_ms, token (of this call: a second run finds its own claim),
--       weights (JSON: tenant → its share), queue, … (the most urgent first)
-- Returns {'claimed', a queue where more jobs can be claimed ('' for none), how many, the record's fields and values …}
--       | {'none'} (nothing to claim, or the worker is shutting down)
--       | {'again'} (many that could not be claimed were ended; call again)
-- requires: keys, webhooks, batches, turns, jobs
local worker, max_attempts, retention_ms, token = ARGV[1], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local now = now_ms()
-- The most jobs that one call ends because they can no longer be claimed.
local MOST_ENDED = 50
-- A repeated call comes within seconds.
local REPEATED_WITHIN_MS = 60000

local function claimed(id)
  local more, waiting = '', 0
  for i = 7, #ARGV do
    waiting = claimable(ARGV[i], now)
    if waiting > 0 then
      more = ARGV[i]
      break
    end
  end
  local fields = redis.call('HGETALL', job_key(id))
  table.insert(fields, 1, 'claimed')
  table.insert(fields, 2, more)
  table.insert(fields, 3, waiting)
  return fields
end

local earlier = redis.call('GET', claimed_key(token))
if earlier then return claimed(earlier) end
if redis.call('EXISTS', draining_key(worker)) == 1 then return {'none'} end

local weights = cjson.decode(ARGV[6])

-- Whether a job is left to other workers: this one has just handed it back for a fault of its own.
local function is_avoided(avoid)
  local until_ms, node = string.match(avoid or '', '^(%d+) (.*)$')
  return node == worker and tonumber(until_ms) > now
end

-- Claim a job; return whether it could be claimed, nil for one that is left to other workers.  of: its tenant, if it waited
-- in turn.
local function claim(id, queue, of)
  local key = job_key(id)
  local job = redis.call('HMGET', key, 'status', 'attempt', 'tenant', 'webhook_url', 'webhook_events', 'ends', 'batch', 'cancel',
    'fence', 'version', 'started_ms', 'avoid')
  local attempt, tenant = tonumber(job[2]), job[3] or of or ''
  if job[1] ~= 'queued' then  -- its record is gone: nothing else takes it out of the lists
    leave_queue(queue, tenant, id)
    redis.call('ZREM', DEADLINES, id)
    if not job[1] then redis.call('SREM', inflight_key(tenant), id) end
    return false
  end
  if job[8] then
    cancel_job(id, now, retention_ms)
    return false
  end
  local deadline = redis.call('ZSCORE', DEADLINES, id)
  if deadline and tonumber(deadline) <= now then
    expire(id, now, retention_ms)
    return false
  end
  if attempt >= max_attempts then
    exhaust(id, attempt, now, retention_ms)
    return false
  end
  if is_avoided(job[12]) then return nil end

  redis.call('HSET', key, 'status', 'processing', 'worker', worker, 'stage', 'fetching', 'claimed_ms', now, 'token', token,
    'started_ms', job[11] or now, 'attempt', attempt + 1, 'fence', job[9] + 1, 'version', (job[10] or 1) + 1)
  redis.call('HDEL', key, 'done', 'total', 'masks')
  redis.call('ZADD', LEASES, now + ARGV[2], id)
  redis.call('ZREM', DEADLINES, id)
  redis.call('SET', claimed_key(token), id, 'PX', REPEATED_WITHIN_MS)
  leave_queue(queue, tenant, id)
  charge_turn(queue, tenant, weights)

  if job[7] then move_in_batch(job[7], 'queued', 'processing', now) end

  begin_attempt(id, attempt + 1, worker, now)
  if attempt == 0 and job[4] and asked_for(job[5], 'started') then
    local delivery = delivery_id(id, tonumber(job[6] or 0) + 1, 'started')
    -- After an attempt that was handed back uncharged, the next one is the first again.
    if redis.call('EXISTS', delivery_key(delivery)) == 0 then queue_delivery(delivery, tenant, id, 'started', job[4], now) end
  end
  return true
end

local ended = 0
for i = 7, #ARGV do
  local passed = 0
  local id, tenant = next_job(ARGV[i], now, passed)
  while id do
    local is_claimed = claim(id, ARGV[i], tenant)
    if is_claimed then return claimed(id) end
    if is_claimed == nil then passed = passed + 1 else ended = ended + 1 end
    if ended == MOST_ENDED then return {'again'} end
    id, tenant = next_job(ARGV[i], now, passed)
  end
end
return {'none'}
