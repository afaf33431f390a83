-- What every script begins with: the clock, the keys, and the two ways in which a job leaves `processing`.
-- The keys, their types and their expiry are described in jobs/ledger.py.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job_key(id) return 'mf:job:' .. id end
local function queued_key(queue) return 'mf:queued:' .. queue end
local function inflight_key(tenant) return 'mf:inflight:' .. tenant end

local function is_ended(status)
  return status == 'succeeded' or status == 'failed' or status == 'canceled' or status == 'expired'
end

-- Puts a job into a terminal state, with everything that follows from it, in one step: it leaves the queues,
-- its record gets an expiry, and the webhook that was asked for is queued.
local function end_job(id, status, now, retention_ms, error_code, error_detail, result)
  local key = job_key(id)
  local job = redis.call('HMGET', key, 'tenant', 'queue', 'webhook_url', 'webhook_events')
  local tenant, queue, webhook_url, webhook_events = job[1], job[2], job[3], job[4]

  redis.call('HSET', key, 'status', status, 'ended_ms', now)
  redis.call('HDEL', key, 'stage')
  if error_code ~= '' then redis.call('HSET', key, 'error_code', error_code, 'error_detail', error_detail) end
  if result ~= '' then redis.call('HSET', key, 'result', result) end
  redis.call('PEXPIRE', key, retention_ms)

  redis.call('ZREM', 'mf:leases', id)
  redis.call('ZREM', 'mf:outbox', id)
  redis.call('ZREM', 'mf:deadlines', id)
  redis.call('ZREM', queued_key(queue), id)
  redis.call('SREM', inflight_key(tenant), id)
  redis.call('HINCRBY', 'mf:totals', status, 1)

  if webhook_url and string.find(',' .. webhook_events .. ',', ',' .. status .. ',', 1, true) then
    local delivery = 'msg_' .. id .. '_' .. status
    redis.call('HSET', 'mf:delivery:' .. delivery, 'job', id, 'event', status, 'url', webhook_url, 'tries', 0)
    redis.call('PEXPIRE', 'mf:delivery:' .. delivery, retention_ms)
    redis.call('ZADD', 'mf:deliveries', now, delivery)
  end
end

-- Puts a job back among the queued ones, to be published at due_ms.  The fence moves on, so that whoever
-- held the job can change nothing any more.
local function requeue_job(id, now, due_ms)
  local key = job_key(id)
  local job = redis.call('HMGET', key, 'queue', 'created_ms')
  redis.call('HSET', key, 'status', 'queued', 'publishes', 0)
  redis.call('HDEL', key, 'stage', 'worker')
  redis.call('HINCRBY', key, 'fence', 1)
  redis.call('ZREM', 'mf:leases', id)
  redis.call('ZADD', queued_key(job[1]), job[2], id)
  redis.call('ZADD', 'mf:outbox', due_ms, id)
end
