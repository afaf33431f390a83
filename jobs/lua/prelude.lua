-- What every script begins with: the clock, the keys, and the ways in which a job leaves a state.
-- The keys, their types and their expiry are described in jobs/ledger.py.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The same with its microseconds, and some later: jobs of one millisecond, or of one script, keep their order.
local function exact_now_ms(later_ms)
  local time = redis.call('TIME')
  return string.format('%.3f', time[1] * 1000 + time[2] / 1000 + later_ms)
end

local function job_key(id) return 'mf:job:' .. id end
local function queued_key(queue) return 'mf:queued:' .. queue end
local function inflight_key(tenant) return 'mf:inflight:' .. tenant end

local function is_ended(status)
  return status == 'succeeded' or status == 'failed' or status == 'canceled' or status == 'expired'
end

-- The job's record changed in a way that a watcher wants to see.
local function changed(id) redis.call('HINCRBY', job_key(id), 'version', 1) end

-- The attempts at a job, oldest first; the last one has no outcome while the job runs.
local function attempts_key(id) return 'mf:attempts:' .. id end

local function begin_attempt(id, number, worker, now)
  redis.call('RPUSH', attempts_key(id), cjson.encode({number = number, worker = worker, started_ms = now}))
  redis.call('LTRIM', attempts_key(id), -20, -1)
end

local function end_attempt(id, outcome, now)
  local last = redis.call('LINDEX', attempts_key(id), -1)
  if not last then return end
  local attempt = cjson.decode(last)
  if attempt.outcome then return end
  attempt.outcome, attempt.ended_ms = outcome, now
  redis.call('LSET', attempts_key(id), -1, cjson.encode(attempt))
end

-- Whoever holds an older token is told so, and counted.
local function fenced()
  redis.call('HINCRBY', 'mf:totals', 'fenced', 1)
  return 'fenced'
end

local function asked_for(events, event) return string.find(',' .. events .. ',', ',' .. event .. ',', 1, true) end

-- Puts a job into a terminal state, with everything that follows from it, in one step: it leaves the queues,
-- its record gets an expiry, and the webhook that was asked for is queued, its batch's too if it was the last one.
local function end_job(id, status, now, retention_ms, error_code, error_detail, result)
  local key = job_key(id)
  local job = redis.call('HMGET', key, 'tenant', 'queue', 'webhook_url', 'webhook_events', 'claimed_ms', 'status', 'batch')
  local tenant, queue, webhook_url, webhook_events = job[1], job[2], job[3], job[4]

  redis.call('HSET', key, 'status', status, 'ended_ms', now)
  redis.call('HDEL', key, 'stage')
  end_attempt(id, error_code ~= '' and error_code or status, now)
  changed(id)
  if error_code ~= '' then redis.call('HSET', key, 'error_code', error_code, 'error_detail', error_detail) end
  if result ~= '' then redis.call('HSET', key, 'result', result) end
  redis.call('PEXPIRE', key, retention_ms)
  redis.call('PEXPIRE', attempts_key(id), retention_ms)

  redis.call('ZREM', 'mf:leases', id)
  redis.call('ZREM', 'mf:outbox', id)
  redis.call('ZREM', 'mf:deadlines', id)
  redis.call('ZREM', queued_key(queue), id)
  redis.call('SREM', inflight_key(tenant), id)
  redis.call('HINCRBY', 'mf:totals', status, 1)

  if status == 'succeeded' and job[5] then
    -- The queue's pace: a moving average of the time that one job takes.
    local pace = tonumber(redis.call('HGET', 'mf:pace', queue) or now - job[5])
    redis.call('HSET', 'mf:pace', queue, math.floor(0.8 * pace + 0.2 * (now - job[5])))
  end

  if webhook_url then
    local number = redis.call('HINCRBY', key, 'ends', 1)
    drop_delivery(delivery_id(id, number, 'started'), tenant, 'The job ended first.', now, retention_ms)
    if asked_for(webhook_events, status) then
      queue_delivery(delivery_id(id, number, status), tenant, id, status, webhook_url, now)
      keep_record_for(id, retention_ms)
    end
  end
  if job[7] then move_in_batch(job[7], job[6], status, now, retention_ms) end
end

-- Puts a job back among the queued ones, to be published at due_ms.  The fence moves on, so that whoever
-- held the job can change nothing any more.
local function requeue_job(id, outcome, now, due_ms)
  local key = job_key(id)
  end_attempt(id, outcome, now)
  changed(id)
  local job = redis.call('HMGET', key, 'queue', 'created_ms', 'status', 'batch')
  redis.call('HSET', key, 'status', 'queued', 'publishes', 0)
  redis.call('HDEL', key, 'stage', 'worker')
  redis.call('HINCRBY', key, 'fence', 1)
  redis.call('ZREM', 'mf:leases', id)
  redis.call('ZADD', queued_key(job[1]), job[2], id)
  redis.call('ZADD', 'mf:outbox', due_ms, id)
  if job[4] then move_in_batch(job[4], job[3], 'queued', now) end
end
