-- Jobs: who may change one, and its transitions between states.
-- requires: keys, bytes, webhooks, batches, turns

local function is_ended(status)
  return status == 'succeeded' or status == 'failed' or status == 'canceled' or status == 'expired'
end

-- Note a change of the job's record that matters to event streams.
local function changed(id) redis.call('HINCRBY', job_key(id), 'version', 1) end

-- Add an attempt to a job's list, oldest first; the last one has no outcome while the job runs.
local function begin_attempt(id, number, worker, now)
  local attempts = redis.call('RPUSH', attempts_key(id), cjson.encode({number = number, worker = worker, started_ms = now}))
  if attempts > 20 then redis.call('LTRIM', attempts_key(id), -20, -1) end
end

local function end_attempt(id, outcome, now)
  local last = redis.call('LINDEX', attempts_key(id), -1)
  if not last then return end
  local attempt = cjson.decode(last)
  if attempt.outcome then return end
  attempt.outcome, attempt.ended_ms = outcome, now
  redis.call('LSET', attempts_key(id), -1, cjson.encode(attempt))
end

-- Whether a worker holds the job: fence and token are of its claim, and the job was not taken back since.  The token is
-- random: a Redis that lost its last writes may give out a fence twice, but no token.
-- job: its status, fence and token.
local function is_held(job, fence, token)
  return job[1] == 'processing' and job[2] == fence and job[3] == token
end

-- The state of a tenant's job; nil when the tenant has none with this id.
local function owned(id, tenant)
  local job = redis.call('HMGET', job_key(id), 'status', 'tenant')
  return job[1] and job[2] == tenant and job[1] or nil
end

-- Count and report a caller that no longer holds its job.
local function fenced()
  redis.call('HINCRBY', TOTALS, 'fenced', 1)
  return 'fenced'
end

local function asked_for(events, event) return string.find(',' .. events .. ',', ',' .. event .. ',', 1, true) end

-- Put a job into a terminal state, with all consequences, in one step: it leaves the queues, its record gets an expiry,
-- and its webhook is queued, as is its batch's if it was the last job.
local function end_job(id, status, now, retention_ms, error_code, error_detail, result)
  local key = job_key(id)
  local job = redis.call('HMGET', key, 'tenant', 'queue', 'webhook_url', 'webhook_events', 'claimed_ms', 'status', 'batch',
    'bytes', 'held', 'version', 'ends')
  local tenant, queue, webhook_url, webhook_events = job[1], job[2], job[3], job[4]
  local is_told = webhook_url and asked_for(webhook_events, status)

  local number = (job[11] or 0) + 1
  local fields = {'status', status, 'ended_ms', now, 'version', (job[10] or 1) + 1}
  local function set(field, value)
    table.insert(fields, field)
    table.insert(fields, value)
  end
  if error_code ~= '' then set('error_code', error_code) set('error_detail', error_detail) end
  if result ~= '' then set('result', result) end
  -- Only a failed job may be retried; of any other, the summary of its spec is all that is still shown.  Records from before
  -- bytes were counted have no summary.
  local spec_bytes = status ~= 'failed' and job[8] and redis.call('HSTRLEN', key, 'spec') or 0
  local life_ms = life_after_end_ms(retention_ms, is_told)
  local bytes, held = (job[8] or 0) - spec_bytes + #error_detail + #result, expired_by(now + life_ms, life_ms)
  if recount(tenant, {job[8], job[9]}, bytes, held) then set('bytes', bytes) set('held', held) end
  if webhook_url then set('ends', number) end
  redis.call('HSET', key, unpack(fields))
  redis.call('HDEL', key, 'stage', unpack(spec_bytes > 0 and {'spec'} or {}))
  end_attempt(id, error_code ~= '' and error_code or status, now)
  redis.call('PEXPIRE', key, life_ms)
  redis.call('PEXPIRE', attempts_key(id), retention_ms)

  if job[6] == 'processing' then
    redis.call('ZREM', LEASES, id)
  else
    redis.call('ZREM', DEADLINES, id)
    leave_queue(queue, tenant, id)
  end
  redis.call('SREM', inflight_key(tenant), id)
  redis.call('HINCRBY', TOTALS, status, 1)

  if status == 'succeeded' and job[5] then
    -- The queue's pace: a moving average of the time per job.
    local pace = tonumber(redis.call('HGET', PACE, queue) or now - job[5])
    redis.call('HSET', PACE, queue, math.floor(0.8 * pace + 0.2 * (now - job[5])))
  end

  if webhook_url then
    if asked_for(webhook_events, 'started') then
      drop_delivery(delivery_id(id, number, 'started'), tenant, 'The job ended before this was sent.', now, retention_ms)
    end
    if is_told then queue_delivery(delivery_id(id, number, status), tenant, id, status, webhook_url, now) end
  end
  if job[7] then move_in_batch(job[7], job[6], status, now, retention_ms) end
end

local function expire(id, now, retention_ms)
  end_job(id, 'expired', now, retention_ms, 'start_deadline_passed', 'No worker started the job within start_deadline_s.', '')
end

local function exhaust(id, attempts, now, retention_ms)
  end_job(id, 'failed', now, retention_ms, 'attempts_exhausted', 'The job did not finish in ' .. attempts .. ' attempts.', '')
end

local function cancel_job(id, now, retention_ms) end_job(id, 'canceled', now, retention_ms, '', '', '') end

-- Return a job to state queued; the caller puts it into its queue.  The fence moves on, so that the worker that held the
-- job can no longer change anything.
local function queue_again(id, outcome, now)
  local key = job_key(id)
  end_attempt(id, outcome, now)
  changed(id)
  local job = redis.call('HMGET', key, 'queue', 'created_ms', 'status', 'batch')
  redis.call('HSET', key, 'status', 'queued')
  redis.call('HDEL', key, 'stage', 'worker')
  redis.call('HINCRBY', key, 'fence', 1)
  redis.call('ZREM', LEASES, id)
  if job[4] then move_in_batch(job[4], job[3], 'queued', now) end
  return {queue = job[1], created_ms = job[2]}
end

-- Take a job from its worker, to be claimed again from due_ms on; end it if its cancellation was requested.
-- Returns whether it is queued.
local function hand_back(id, outcome, now, due_ms, retention_ms)
  if redis.call('HEXISTS', job_key(id), 'cancel') == 1 then
    cancel_job(id, now, retention_ms)
    return false
  end
  local again = queue_again(id, outcome, now)
  return_to_queue(again.queue, id, again.created_ms, due_ms)
  return true
end
