-- Webhooks: queue, schedule and end them.
-- requires: keys, bytes
--
-- Each tenant has a queue per host, with a list of what is being sent and a breaker, so that a host that hangs delays
-- only what this tenant sends to it.  Two indexes say which host queue to check next: HOST_QUEUES, tenant → when;
-- host_queues_key(tenant), host → when.  An entry that is too early costs a check; one that is too late would delay a webhook.

-- A webhook that is still waiting after this long is given up.  Its record expires after twice as long, and once it has
-- ended, after retention_ms.
local GIVEN_UP_MS = 7 * 86400 * 1000
-- The attempts that are kept of each webhook.
local DELIVERY_ATTEMPTS_KEPT = 20

-- A webhook's id.  number: how often its job or batch has ended, including the end that it is about or that comes next.
local function delivery_id(subject, number, event) return 'msg_' .. subject .. '_' .. number .. '_' .. event end

local function host_of(url) return string.lower(string.match(url, '^%a+://([^/?#]+)') or url) end

-- Have a host queue checked no later than at_ms.
local function wake_host_queue(tenant, host, at_ms)
  redis.call('ZADD', host_queues_key(tenant), 'LT', at_ms, host)
  redis.call('ZADD', HOST_QUEUES, 'LT', at_ms, tenant)
end

local function enqueue_delivery(id, tenant, url, due_ms, now)
  local host = host_of(url)
  redis.call('ZADD', due_key(tenant, host), due_ms, id)
  redis.call('ZADD', WAITING, due_ms, id)
  wake_host_queue(tenant, host, math.max(due_ms, now))
end

-- Put a webhook that somebody asked for before all others, and let it probe its host at once if a breaker is open.
local function rush_delivery(id, tenant, url, now)
  local host = host_of(url)
  redis.call('HSET', delivery_key(id), 'forced', 1)
  redis.call('ZADD', due_key(tenant, host), 0, id)
  redis.call('ZADD', host_queues_key(tenant), 0, host)
  if redis.call('HEXISTS', receivers_key(tenant), 'until_ms') == 1 then
    redis.call('HSET', receivers_key(tenant), 'until_ms', now)
  end
  if redis.call('EXISTS', breaker_key(tenant, host)) == 1 then
    redis.call('HSET', breaker_key(tenant, host), 'until_ms', now)
  end
end

-- Record a webhook, and queue it to be sent at once.  subject: the job or batch that it is about, '' for none.
local function queue_delivery(id, tenant, subject, event, url, now)
  redis.call('HSET', delivery_key(id), 'tenant', tenant, 'subject', subject, 'event', event, 'url', url, 'state', 'waiting',
    'tries', 0, 'made', 0, 'created_ms', now, 'queued_ms', now, 'next_ms', now)
  redis.call('PEXPIRE', delivery_key(id), 2 * GIVEN_UP_MS)
  if subject ~= '' then
    redis.call('RPUSH', deliveries_of_key(subject), id)
    redis.call('PEXPIRE', deliveries_of_key(subject), 2 * GIVEN_UP_MS)
  end
  redis.call('ZADD', log_key(tenant), now, id)
  redis.call('PEXPIRE', log_key(tenant), 2 * GIVEN_UP_MS)
  enqueue_delivery(id, tenant, url, now, now)
end

-- Remove a webhook from its host queue, without recording an outcome.
local function unqueue_delivery(id, tenant, host)
  redis.call('ZREM', due_key(tenant, host), id)
  redis.call('ZREM', sending_key(tenant, host), id)
  redis.call('ZREM', WAITING, id)
end

-- How long a record is kept after its end: beyond its retention until the webhook of its end, if there is one, was attempted
-- once, since the webhook's body is made from the record.
local function life_after_end_ms(retention_ms, is_told)
  return is_told and math.max(retention_ms, GIVEN_UP_MS) or tonumber(retention_ms)
end

-- Let a record expire on time: the webhook has its body, or no longer needs one.
local function let_record_go(id, subject, now, retention_ms)
  if subject == '' or redis.call('LINDEX', deliveries_of_key(subject), -1) ~= id then return end
  local record = redis.call('HMGET', record_key(subject), 'tenant', 'bytes', 'held', 'ended_ms')
  if record[4] then expire_record(subject, record, now, record[4] + retention_ms, retention_ms) end
end

-- End a webhook.  detail: why, in words; '' when the state says enough.
local function end_delivery(id, tenant, url, state, detail, now, retention_ms)
  unqueue_delivery(id, tenant, host_of(url))
  redis.call('HSET', delivery_key(id), 'state', state, 'ended_ms', now, 'detail', detail)
  redis.call('HDEL', delivery_key(id), 'next_ms', 'forced')
  redis.call('PEXPIRE', delivery_key(id), retention_ms)
  redis.call('PEXPIRE', delivery_attempts_key(id), retention_ms)
  redis.call('HINCRBY', TOTALS, 'webhooks_' .. state, 1)
  let_record_go(id, redis.call('HGET', delivery_key(id), 'subject'), now, retention_ms)
end

-- Drop a webhook whose event is no longer true, unless it is being sent right now.  detail: why.
local function drop_delivery(id, tenant, detail, now, retention_ms)
  local delivery = redis.call('HMGET', delivery_key(id), 'state', 'url')
  if delivery[1] ~= 'waiting' then return end
  if redis.call('ZSCORE', sending_key(tenant, host_of(delivery[2])), id) then return end
  end_delivery(id, tenant, delivery[2], 'dropped', detail, now, retention_ms)
end
