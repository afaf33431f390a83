#!lua flags=allow-oom
-- Lease the webhooks that are due.  Each is due again when its lease runs out, in case its courier dies.
-- Tenants take turns, and so do each tenant's hosts; a host whose breaker has opened gets nothing until it has passed,
-- then one webhook at a time.  So does a tenant none of whose hosts answers.
--
-- A courier's senders are shared out so that some are always free for whoever comes next.  Tenants one of whose
-- receivers answered quickly of late, and none hung since, share what the others do not hold; those others together
-- never hold all (docs/decisions/0043-a-webhook-secret-per-tenant.md).
-- ARGV: limit, lease_ms, per_host (sent to one host at once, by all couriers), senders (of this courier),
--       breaker_failures (0: no breaker), retention_ms,
--       then tenant, how many of its webhooks this courier is sending, whether one of them hangs ('1' | ''), …
-- Returns {delivery, tenant, subject, event, url, body, attempts_since_queued, attempts_total, forced, now_s,
--          hung (whether its host did not answer in time of late: '1' | ''), …}
-- requires: keys, webhooks
local now = now_ms()
local limit, lease_ms, per_host, senders = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local breaker_failures, retention_ms = tonumber(ARGV[5]), ARGV[6]
local sending, hanging = {}, {}
for i = 7, #ARGV, 3 do sending[ARGV[i]], hanging[ARGV[i]] = tonumber(ARGV[i + 1]), ARGV[i + 2] == '1' end

-- The most that one call examines: overall, of a tenant and of a host; the rest waits for the next call.
local MAX_TENANTS, MAX_HOST_QUEUES, MAX_HOSTS, MAX_WEBHOOKS = 256, 512, 64, 100
local RETURNED = 11
-- How long an answer speaks for a tenant's receivers.
local ANSWER_COUNTS_MS = 3600 * 1000
-- A tenant whose receivers have not answered of late has so much of the senders at most; together with those that
-- hang, so much.  The rest is kept for tenants whose receivers answer.
local UNKNOWN_SHARE, UNPROVEN_SHARE = 1 / 8, 3 / 4
-- One host has so much of its tenant's share at most, so that the tenant's other hosts have the rest.
local HOST_SHARE = 3 / 4
-- Sent at once to a host that did not answer in time of late.
local PER_HUNG_HOST = 2
local looks = 0
local due = {}

-- What is known of each tenant's receivers: answered (of late), proven (answered, and none has hung since),
-- paused_ms (until when all are left alone), probing (that time has passed: one webhook shows whether they are back).
local known = {}
local proven_tenants, unproven_tenants, unproven_sending = 0, 0, 0

local function look_up(tenant)
  if known[tenant] then return end
  local seen = redis.call('HMGET', receivers_key(tenant), 'answered_ms', 'until_ms')
  local hung = redis.call('SCARD', hung_key(tenant))
  local answered = tonumber(seen[1] or 0) > now - ANSWER_COUNTS_MS
  local pauses = breaker_failures > 0 and hung >= breaker_failures
  local until_ms = pauses and tonumber(seen[2] or 0) or 0
  local proven = answered and hung == 0 and not hanging[tenant]
  known[tenant] = {answered = answered, proven = proven, paused_ms = until_ms, probing = pauses and until_ms <= now}
  if proven then
    proven_tenants = proven_tenants + 1
  else
    unproven_sending = unproven_sending + (sending[tenant] or 0)
    if until_ms <= now then unproven_tenants = unproven_tenants + 1 end
  end
end

-- The most senders that a tenant may hold, and how many more that is now.  One tenant more than there are would find
-- as many free.
local function share_of(tenant)
  local held = sending[tenant] or 0
  if known[tenant].proven then
    local most = math.max(1, math.floor((senders - unproven_sending) / (proven_tenants + 1)))
    return most, most - held
  end
  local pool = math.max(1, math.floor(senders * UNPROVEN_SHARE))
  local most = math.floor(pool / (unproven_tenants + 1))
  if not known[tenant].answered then most = math.min(most, math.floor(senders * UNKNOWN_SHARE)) end
  most = math.max(1, most)
  local more = math.min(most - held, pool - unproven_sending)
  return most, known[tenant].probing and math.min(more, 1) or more
end

local function take(id, tenant, host, delivery, hung)
  redis.call('ZREM', due_key(tenant, host), id)
  redis.call('ZADD', sending_key(tenant, host), now + lease_ms, id)
  redis.call('ZADD', WAITING, now + lease_ms, id)
  local attempts_since_queued = redis.call('HINCRBY', delivery_key(id), 'tries', 1)
  local attempts_total = redis.call('HINCRBY', delivery_key(id), 'made', 1)
  for _, value in ipairs({id, tenant, delivery[2], delivery[3], delivery[4], delivery[5] or '', tostring(attempts_since_queued),
    tostring(attempts_total), delivery[6] or '', tostring(math.floor(now / 1000)), hung and '1' or ''}) do table.insert(due, value) end
end

-- How many more webhooks may be sent to a host now.  most: its tenant's share.
local function room(tenant, host, most)
  local under_way = redis.call('ZCARD', sending_key(tenant, host))
  local breaker = redis.call('HMGET', breaker_key(tenant, host), 'failures', 'until_ms', 'hung')
  if breaker_failures == 0 or tonumber(breaker[1] or 0) < breaker_failures then
    local at_once = math.min(per_host, math.max(1, math.floor(most * HOST_SHARE)))
    return (breaker[3] and math.min(at_once, PER_HUNG_HOST) or at_once) - under_way
  end
  if tonumber(breaker[2] or 0) > now then return 0 end
  return 1 - under_way
end

local function take_from(tenant, host, most, share)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', sending_key(tenant, host), '-inf', now)) do
    redis.call('ZREM', sending_key(tenant, host), id)
    redis.call('ZADD', due_key(tenant, host), now, id)
  end
  local wanted, taken = math.min(room(tenant, host, most), share), 0
  if wanted <= 0 then return 0 end
  local hung = redis.call('HEXISTS', breaker_key(tenant, host), 'hung') == 1
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due_key(tenant, host), '-inf', now, 'LIMIT', 0, MAX_WEBHOOKS)) do
    local delivery = redis.call('HMGET', delivery_key(id), 'state', 'subject', 'event', 'url', 'body', 'forced', 'queued_ms')
    if delivery[1] ~= 'waiting' then
      unqueue_delivery(id, tenant, host)
    elseif now - delivery[7] > GIVEN_UP_MS then
      end_delivery(id, tenant, delivery[4], 'given_up', 'It could not be delivered within 7 days.', now, retention_ms)
    elseif not delivery[6] and redis.call('EXISTS', disabled_key(tenant, delivery[4])) == 1 then
      end_delivery(id, tenant, delivery[4], 'disabled', 'The endpoint is disabled: it responded 410 earlier.', now, retention_ms)
    else
      take(id, tenant, host, delivery, hung)
      taken = taken + 1
      if taken == wanted then break end
    end
  end
  return taken
end

-- Schedule the next check of a host: when it has room and something is due, or a lease runs out.
local function settle(tenant, host, most)
  local next_ms = nil
  local first = redis.call('ZRANGE', due_key(tenant, host), 0, 0, 'WITHSCORES')[2]
  local breaker_ms = breaker_failures > 0 and redis.call('HGET', breaker_key(tenant, host), 'until_ms') or 0
  if first and (room(tenant, host, most) > 0 or tonumber(breaker_ms) > now) then
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

-- Take from a tenant's hosts as much as its share allows.
local function serve(tenant, most, share)
  local before = #due
  for _, host in ipairs(redis.call('ZRANGEBYSCORE', host_queues_key(tenant), '-inf', now, 'LIMIT', 0, MAX_HOSTS)) do
    share = share - take_from(tenant, host, most, share)
    settle(tenant, host, most)
    looks = looks + 1
    if share <= 0 then break end
  end
  local taken = (#due - before) / RETURNED
  sending[tenant] = (sending[tenant] or 0) + taken
  if not known[tenant].proven then unproven_sending = unproven_sending + taken end
  if known[tenant].probing and taken > 0 then
    -- The probe's outcome says how it goes on; if there is none, the next one comes when the lease runs out.
    redis.call('HSET', receivers_key(tenant), 'until_ms', now + lease_ms, 'probe', due[before + 1])
  end
  local next_ms = redis.call('ZRANGE', host_queues_key(tenant), 0, 0, 'WITHSCORES')[2]
  if next_ms then
    -- Never the past: a tenant that just had its turn comes after those that wait for theirs.
    redis.call('ZADD', HOST_QUEUES, math.max(tonumber(next_ms), now), tenant)
  else
    redis.call('ZREM', HOST_QUEUES, tenant)
  end
end

local tenants = redis.call('ZRANGEBYSCORE', HOST_QUEUES, '-inf', now, 'LIMIT', 0, MAX_TENANTS)
for _, tenant in ipairs(tenants) do look_up(tenant) end
for tenant in pairs(sending) do look_up(tenant) end

for place, tenant in ipairs(tenants) do
  local left = limit - #due / RETURNED
  if left <= 0 or looks >= MAX_HOST_QUEUES then break end
  local most, more = share_of(tenant)
  local share = math.min(more, left)
  if known[tenant].paused_ms > now then
    redis.call('ZADD', HOST_QUEUES, known[tenant].paused_ms, tenant)
  elseif share > 0 then
    serve(tenant, most, share)
  elseif #tenants == MAX_TENANTS then
    -- So many wait for a share that they would hide those behind them.  They keep their order, and come before those
    -- that had a turn.
    redis.call('ZADD', HOST_QUEUES, string.format('%.3f', now - 1 + place / 1000), tenant)
  end
end
return due
