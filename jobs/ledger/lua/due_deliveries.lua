#!lua flags=allow-oom
-- Lease the webhooks that are due.  Each is due again when its lease runs out, in case its courier dies.
-- Tenants take turns, and so do each tenant's hosts; a host whose breaker has opened gets nothing until it has passed,
-- then one webhook at a time.
-- ARGV: limit, lease_ms, per_host (sent to one host at once, by all couriers), per_tenant (by this courier),
--       breaker_failures (0: no breaker), retention_ms, then tenant, how many of its webhooks this courier is sending, …
-- Returns {delivery, tenant, subject, event, url, body, attempts_since_queued, attempts_total, forced, now_s, …}
-- requires: keys, webhooks
local now = now_ms()
local limit, lease_ms, per_host, per_tenant = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local breaker_failures, retention_ms = tonumber(ARGV[5]), ARGV[6]
local sending = {}
for i = 7, #ARGV, 2 do sending[ARGV[i]] = tonumber(ARGV[i + 1]) end

-- The most that one call examines: overall, of a tenant and of a host; the rest waits for the next call.
local MAX_TENANTS, MAX_HOST_QUEUES, MAX_HOSTS, MAX_WEBHOOKS = 256, 512, 64, 100
local looks = 0
local due = {}

local function take(id, tenant, host, delivery)
  redis.call('ZREM', due_key(tenant, host), id)
  redis.call('ZADD', sending_key(tenant, host), now + lease_ms, id)
  redis.call('ZADD', WAITING, now + lease_ms, id)
  local attempts_since_queued = redis.call('HINCRBY', delivery_key(id), 'tries', 1)
  local attempts_total = redis.call('HINCRBY', delivery_key(id), 'made', 1)
  for _, value in ipairs({id, tenant, delivery[2], delivery[3], delivery[4], delivery[5] or '', tostring(attempts_since_queued),
    tostring(attempts_total), delivery[6] or '', tostring(math.floor(now / 1000))}) do table.insert(due, value) end
end

-- How many more webhooks may be sent to a host now.
local function room(tenant, host)
  local under_way = redis.call('ZCARD', sending_key(tenant, host))
  local breaker = redis.call('HMGET', breaker_key(tenant, host), 'failures', 'until_ms')
  if breaker_failures == 0 or tonumber(breaker[1] or 0) < breaker_failures then return per_host - under_way end
  if tonumber(breaker[2] or 0) > now then return 0 end
  return 1 - under_way
end

local function take_from(tenant, host, share)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', sending_key(tenant, host), '-inf', now)) do
    redis.call('ZREM', sending_key(tenant, host), id)
    redis.call('ZADD', due_key(tenant, host), now, id)
  end
  local most, taken = math.min(room(tenant, host), share), 0
  if most <= 0 then return 0 end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due_key(tenant, host), '-inf', now, 'LIMIT', 0, MAX_WEBHOOKS)) do
    local delivery = redis.call('HMGET', delivery_key(id), 'state', 'subject', 'event', 'url', 'body', 'forced', 'queued_ms')
    if delivery[1] ~= 'waiting' then
      unqueue_delivery(id, tenant, host)
    elseif now - delivery[7] > GIVEN_UP_MS then
      end_delivery(id, tenant, delivery[4], 'given_up', 'It could not be delivered within 7 days.', now, retention_ms)
    elseif not delivery[6] and redis.call('EXISTS', disabled_key(tenant, delivery[4])) == 1 then
      end_delivery(id, tenant, delivery[4], 'disabled', 'The endpoint is disabled: it responded 410 earlier.', now, retention_ms)
    else
      take(id, tenant, host, delivery)
      taken = taken + 1
      if taken == most then break end
    end
  end
  return taken
end

-- Schedule the next check of a host: when it has room and something is due, or a lease runs out.
local function settle(tenant, host)
  local next_ms = nil
  local first = redis.call('ZRANGE', due_key(tenant, host), 0, 0, 'WITHSCORES')[2]
  local breaker_ms = breaker_failures > 0 and redis.call('HGET', breaker_key(tenant, host), 'until_ms') or 0
  if first and (room(tenant, host) > 0 or tonumber(breaker_ms) > now) then
    next_ms = math.max(tonumber(first), tonumber(breaker_ms), now)
  end
  local lease = redis.call('ZRANGE', sending_key(tenant, host), 0, 0, 'WITHSCORES')[2]
  if lease and (not next_ms or tonumber(lease) < next_ms) then next_ms = tonumber(lease) end
  if next_ms then
    redis.call('ZADD', host_queues_key(tenant), next_ms, host)
  else
    redis.call('ZREM', host_queues_key(tenant), host)
  end
end

for _, tenant in ipairs(redis.call('ZRANGEBYSCORE', HOST_QUEUES, '-inf', now, 'LIMIT', 0, MAX_TENANTS)) do
  local left = limit - #due / 10
  if left <= 0 or looks >= MAX_HOST_QUEUES then break end
  local share = math.min(per_tenant - (sending[tenant] or 0), left)
  if share > 0 then
    for _, host in ipairs(redis.call('ZRANGEBYSCORE', host_queues_key(tenant), '-inf', now, 'LIMIT', 0, MAX_HOSTS)) do
      share = share - take_from(tenant, host, share)
      settle(tenant, host)
      looks = looks + 1
      if share <= 0 then break end
    end
    local next_ms = redis.call('ZRANGE', host_queues_key(tenant), 0, 0, 'WITHSCORES')[2]
    if next_ms then
      -- Never the past: a tenant that just had its turn comes after those that wait for theirs.
      redis.call('ZADD', HOST_QUEUES, math.max(tonumber(next_ms), now), tenant)
    else
      redis.call('ZREM', HOST_QUEUES, tenant)
    end
  end
end
return due
