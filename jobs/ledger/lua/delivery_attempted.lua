#!lua flags=allow-oom
-- Record the outcome of a delivery attempt.
-- ARGV: id, attempts_total (the number of the attempt), attempt (JSON; '' when nothing was sent), host ('well' | 'failed' | ''),
--       state ('waiting': try again), detail, delay_ms, breaker_failures, breaker_ms, disable_ms (0: do not), retention_ms,
--       pace ('quick': the host answered within a moment | 'hung': not in time | 'other' | '': nothing was sent)
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

-- The hosts that hang are noted until one of the tenant's answers: as many as a breaker takes pause them all, so that a
-- thousand names for one receiver that hangs have no thousand breakers to open.
local receivers, hung, pace = receivers_key(tenant), hung_key(tenant), ARGV[12]
if redis.call('HGET', receivers, 'probe') == id then
  redis.call('HDEL', receivers, 'probe')
  redis.call('HSET', receivers, 'until_ms', now)
end
if pace == 'hung' then
  redis.call('HINCRBY', breaker, 'hung', 1)
  redis.call('PEXPIRE', breaker, 86400 * 1000)
  if redis.call('SCARD', hung) < math.max(failures, 1) then redis.call('SADD', hung, host) end  -- no more are needed
  redis.call('PEXPIRE', hung, 86400 * 1000)
  local until_ms = tonumber(redis.call('HGET', receivers, 'until_ms') or 0)
  if failures > 0 and redis.call('SCARD', hung) >= failures and now >= until_ms then
    local pauses = redis.call('HINCRBY', receivers, 'pauses', 1)
    redis.call('HSET', receivers, 'until_ms', math.floor(now + ARGV[9] * 2 ^ math.min(pauses - 1, 5)))
  end
elseif pace ~= '' then
  redis.call('HDEL', breaker, 'hung')
  redis.call('DEL', hung)
  redis.call('HDEL', receivers, 'until_ms', 'pauses')
  if pace == 'quick' then redis.call('HSET', receivers, 'answered_ms', now) end
end
redis.call('PEXPIRE', receivers, 86400 * 1000)

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
