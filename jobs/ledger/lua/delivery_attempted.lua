#!lua flags=allow-oom
-- Record the outcome of a delivery attempt.
-- ARGV: id, attempts_total (the number of the attempt), attempt (JSON; '' when nothing was sent), host ('well' | 'failed' | ''),
--       state ('waiting': try again), detail, delay_ms, breaker_failures, breaker_ms, disable_ms (0: do not), retention_ms
-- Returns 'ok' | 'late' (another courier has it by now, or it has ended) | 'unknown'
-- requires: keys, webhooks
local id, attempts_total, attempt, state = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local key = delivery_key(id)
local delivery = redis.call('HMGET', key, 'tenant', 'url', 'state', 'made')
if not delivery[1] then return 'unknown' end
local tenant, url, host, now = delivery[1], delivery[2], host_of(delivery[2]), now_ms()

if attempt ~= '' then
  if redis.call('LINDEX', delivery_attempts_key(id), -1) == attempt then return 'ok' end  -- a repeated call
  redis.call('RPUSH', delivery_attempts_key(id), attempt)
  redis.call('LTRIM', delivery_attempts_key(id), -DELIVERY_ATTEMPTS_KEPT, -1)
  redis.call('PEXPIRE', delivery_attempts_key(id), redis.call('PTTL', key))
end

-- The breaker opens after breaker_failures failures in a row, for twice as long after each failed probe.
local breaker, failures = breaker_key(tenant, host), tonumber(ARGV[8])
if ARGV[4] == 'well' then
  redis.call('DEL', breaker)
elseif ARGV[4] == 'failed' and failures > 0 and now >= tonumber(redis.call('HGET', breaker, 'until_ms') or 0) then
  local seen = redis.call('HINCRBY', breaker, 'failures', 1)
  if seen >= failures then
    redis.call('HSET', breaker, 'until_ms', math.floor(now + ARGV[9] * 2 ^ math.min(seen - failures, 5)))
  end
  redis.call('PEXPIRE', breaker, 86400 * 1000)
end

if state == 'delivered' then
  redis.call('DEL', disabled_key(tenant, url))
elseif ARGV[10] ~= '0' then
  redis.call('SET', disabled_key(tenant, url), now, 'PX', ARGV[10])
end

wake_host_queue(tenant, host, now)
if (delivery[3] ~= 'waiting' or delivery[4] ~= attempts_total) and state ~= 'delivered' then return 'late' end
if state ~= 'waiting' then
  end_delivery(id, tenant, url, state, ARGV[6], now, ARGV[11])
  return 'ok'
end
local due_ms = now + ARGV[7]
redis.call('ZREM', sending_key(tenant, host), id)
redis.call('HSET', key, 'next_ms', due_ms)
enqueue_delivery(id, tenant, url, due_ms, now)
return 'ok'
