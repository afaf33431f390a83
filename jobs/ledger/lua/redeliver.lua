#!lua flags=allow-oom
-- Queue webhooks again, at once and with their schedule restarted, each under its own id.
-- They are sent even if their endpoint is disabled or their host's breaker is open, since somebody asked for them.
-- ARGV: tenant, states (',given_up,refused,', or '' for any), id, …
-- Returns {id, 'queued' | 'waiting' (it is being sent right now) | 'skipped' (it is in another state) | 'unknown', …}
-- requires: keys, webhooks
local tenant, states, now = ARGV[1], ARGV[2], now_ms()
local replies = {}

local function redeliver(id)
  local key = delivery_key(id)
  local delivery = redis.call('HMGET', key, 'tenant', 'url', 'state')
  if delivery[1] ~= tenant then return 'unknown' end
  if states ~= '' and not string.find(states, ',' .. delivery[3] .. ',', 1, true) then return 'skipped' end
  local url, host = delivery[2], host_of(delivery[2])
  if redis.call('ZSCORE', sending_key(tenant, host), id) then return 'waiting' end
  redis.call('HSET', key, 'state', 'waiting', 'tries', 0, 'queued_ms', now, 'next_ms', now)
  redis.call('HDEL', key, 'ended_ms', 'detail')
  redis.call('PEXPIRE', key, 2 * GIVEN_UP_MS)
  redis.call('PEXPIRE', delivery_attempts_key(id), 2 * GIVEN_UP_MS)
  enqueue_delivery(id, tenant, url, now, now)
  rush_delivery(id, tenant, url, now)
  return 'queued'
end

for i = 3, #ARGV do
  table.insert(replies, ARGV[i])
  table.insert(replies, redeliver(ARGV[i]))
end
return replies
