-- Jobs: who may change one, and its transitions between states.
-- requires: keys, bytes, webhooks, batches, turns

local function is_ended(status)
  return status == 'succeeded' or status == 'failed' or status == 'canceled' or status == 'expired'
end

-- Note a change of the job's record that matters to event streams.
local function changed(id) redis.call('HINCRBY', job_key(id), 'version', 1) end

-- What transitions need of a job's record.
local JOB_FIELDS = {'tenant', 'queue', 'status', 'fence', 'token', 'webhook_url', 'webhook_events', 'ends', 'created_ms',
  'claimed_ms', 'attempt', 'attempts', 'worker', 'stage', 'batch', 'bytes', 'held', 'spec_bytes', 'version', 'cancel', 'image'}

-- Read fields of a job's record, by name; all that transitions need, if none are named.
local function read_job(id, names)
  names = names or JOB_FIELDS
  local job = {}
  for place, value in ipairs(redis.call('HMGET', job_key(id), unpack(names))) do job[names[place]] = value or nil end
  return job
end

-- The attempts that a job's record lists once the running one, if there is one, has ended.
local function attempts_after(job, outcome, now)
  if job.status ~= 'processing' then return job.attempts end
  local attempts = job.attempts and cjson.decode(job.attempts) or {}
  table.insert(attempts, {number = tonumber(job.attempt), worker = job.worker, started_ms = tonumber(job.claimed_ms),
    outcome = outcome, ended_ms = now})
  if #attempts > 20 then table.remove(attempts, 1) end
  return cjson.encode(attempts)
end

-- Whether a worker holds the job: fence and token are of its claim, and the job was not taken back since.  The token is
-- random: a Redis that lost its last writes may give out a fence twice, but no token.
local function is_held(job, fence, token)
  return job.status == 'processing' and job.fence == fence and job.token == token
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
-- its webhook is queued, as is its batch's if it was the last job, and whoever waits for it is told.  job: what
-- transitions need of it.
local function end_job(id, job, status, now, retention_ms, error_code, error_detail, result)
  local key = job_key(id)
  local tenant, queue, webhook_url, webhook_events = job.tenant, job.queue, job.webhook_url, job.webhook_events
  local is_told = webhook_url and asked_for(webhook_events, status)

  local number = (job.ends or 0) + 1
  local fields = {'status', status, 'ended_ms', now, 'version', (job.version or 1) + 1}
  local function set(field, value)
    table.insert(fields, field)
    table.insert(fields, value)
  end
  if error_code ~= '' then set('error_code', error_code) set('error_detail', error_detail) end
  if result ~= '' then set('result', result) end
  -- Only a failed job may be retried; of any other, the summary of its spec is all that is still shown.  Records from before
  -- bytes were counted have no summary.
  local spec_bytes = status ~= 'failed' and job.bytes and (job.spec_bytes or redis.call('HSTRLEN', key, 'spec')) or 0
  local life_ms = life_after_end_ms(retention_ms, is_told)
  local bytes, held = (job.bytes or 0) - spec_bytes + #error_detail + #result, expired_by(now + life_ms, life_ms)
  if recount(tenant, {job.bytes, job.held}, bytes, held) then set('bytes', bytes) set('held', held) end
  if webhook_url then set('ends', number) end
  -- Emptied, not deleted, in the one write of the record.
  if job.stage then set('stage', '') end
  if tonumber(spec_bytes) > 0 then set('spec', '') end
  local attempts = attempts_after(job, error_code ~= '' and error_code or status, now)
  if attempts then set('attempts', attempts) end
  redis.call('HSET', key, unpack(fields))
  redis.call('PEXPIRE', key, life_ms)
  -- Only a job that was recorded before version 2 may have the key.
  if not job.spec_bytes then redis.call('PEXPIRE', attempts_key(id), retention_ms) end

  if job.status == 'processing' then
    redis.call('ZREM', LEASES, id)
  else
    redis.call('ZREM', DEADLINES, id)
    leave_queue(queue, tenant, id)
  end
  redis.call('SREM', inflight_key(tenant), id)
  if status == 'succeeded' and job.claimed_ms then
    -- The queue's pace: a moving average of the time per job.
    local field, took_ms = pace_field(queue), now - job.claimed_ms
    local said = redis.call('HMGET', TOTALS, status, field)
    local pace = math.floor(0.8 * (said[2] or took_ms) + 0.2 * took_ms)
    redis.call('HSET', TOTALS, status, string.format('%.0f', (said[1] or 0) + 1), field, pace)
  else
    redis.call('HINCRBY', TOTALS, status, 1)
  end

  if webhook_url then
    if asked_for(webhook_events, 'started') then
      drop_delivery(delivery_id(id, number, 'started'), tenant, 'The job ended before this was sent.', now, retention_ms)
    end
    if is_told then queue_delivery(delivery_id(id, number, status), tenant, id, status, webhook_url, now) end
  end
  if job.batch then move_in_batch(job.batch, job.status, status, now, retention_ms, id) end
  -- Last, and never an error: whoever misses it looks at the record a little later.
  redis.pcall('PUBLISH', ENDED, id)
end

local function expire(id, job, now, retention_ms)
  end_job(id, job, 'expired', now, retention_ms, 'start_deadline_passed', 'No worker started the job within start_deadline_s.', '')
end

local function exhaust(id, job, now, retention_ms)
  local detail = 'The job did not finish in ' .. job.attempt .. ' attempts.'
  end_job(id, job, 'failed', now, retention_ms, 'attempts_exhausted', detail, '')
end

local function cancel_job(id, job, now, retention_ms) end_job(id, job, 'canceled', now, retention_ms, '', '', '') end

-- Return a job to state queued; the caller puts it into its queue.  The fence moves on, so that the worker that held the
-- job can no longer change anything.
local function queue_again(id, job, outcome, now)
  local key, attempts = job_key(id), attempts_after(job, outcome, now)
  redis.call('HSET', key, 'status', 'queued', 'fence', job.fence + 1, 'version', (job.version or 1) + 1,
    unpack(attempts and {'attempts', attempts} or {}))
  redis.call('HDEL', key, 'stage', 'worker')
  redis.call('ZREM', LEASES, id)
  if job.batch then move_in_batch(job.batch, job.status, 'queued', now) end
end

-- Take a job from its worker, to be claimed again from due_ms on; end it if its cancellation was requested.
-- Returns whether it is queued.
local function hand_back(id, job, outcome, now, due_ms, retention_ms)
  if job.cancel then
    cancel_job(id, job, now, retention_ms)
    return false
  end
  queue_again(id, job, outcome, now)
  return_to_queue(job.queue, id, job.created_ms, due_ms)
  return true
end
