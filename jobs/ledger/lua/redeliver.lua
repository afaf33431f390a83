#!lua flags=allow-oom
-- Queue webhooks again, with their schedule restarted, each under its own id.
-- A single one is sent at once, even if its endpoint is disabled or its host's breaker is open, since somebody waits to see
-- it.  Those of a range wait their turn like new ones, and are left out if they wait already, or if an earlier range's
-- call had them sent within the last hour and they arrived.
-- ARGV: tenant, range (a token of the call, so that a second run finds what the first did; '' for a single one),
--       states (',given_up,refused,': of a range only these), budget (of one tenant within an hour), id, …
-- Returns {id, 'queued' | 'waiting' (it is being sent right now) | 'skipped' | 'over_budget' | 'unknown', …}
-- requires: keys, webhooks
local tenant, range, states, budget, now = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), now_ms()
local HOUR_MS = 3600 * 1000
local replies = {}

local function is_left_out(delivery)
  if not string.find(states, ',' .. delivery[3] .. ',', 1, true) then return true end
  return delivery[3] == 'delivered' and now - tonumber(delivery[5] or 0) < HOUR_MS
end

local function redeliver(id)
  local key = delivery_key(id)
  local delivery = redis.call('HMGET', key, 'tenant', 'url', 'state', 'redelivery', 'redelivered_ms')
  if not delivery[1] then redis.call('ZREM', log_key(tenant), id) end
  if delivery[1] ~= tenant then return 'unknown' end
  if range ~= '' and delivery[4] == range then return 'queued' end
  if range ~= '' and is_left_out(delivery) then return 'skipped' end
  local url, host = delivery[2], host_of(delivery[2])
  if redis.call('ZSCORE', sending_key(tenant, host), id) then return 'waiting' end
  if tonumber(redis.call('GET', redelivered_key(tenant)) or 0) >= budget then return 'over_budget' end
  if redis.call('INCR', redelivered_key(tenant)) == 1 then redis.call('PEXPIRE', redelivered_key(tenant), HOUR_MS) end
  redis.call('HSET', key, 'state', 'waiting', 'tries', 0, 'queued_ms', now, 'next_ms', now)
  redis.call('HDEL', key, 'ended_ms', 'detail', 'forced')
  redis.call('PEXPIRE', key, 2 * GIVEN_UP_MS)
  redis.call('PEXPIRE', delivery_attempts_key(id), 2 * GIVEN_UP_MS)
  enqueue_delivery(id, tenant, url, now, now)
  if range == '' then
    rush_delivery(id, tenant, url, now)
  else
    redis.call('HSET', key, 'redelivery', range, 'redelivered_ms', now)
  end
  return 'queued'
end

for i = 5, #ARGV do
  table.insert(replies, ARGV[i])
  table.insert(replies, redeliver(ARGV[i]))
end
return replies
