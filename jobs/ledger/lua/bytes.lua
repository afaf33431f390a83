-- Bytes: what a tenant's records hold in Redis, counted for its quota.
-- requires: keys
--
-- A tenant's hash holds 'live', for the records without an expiry, and for all others their bytes by the time at which
-- they have expired.  So nothing has to notice that Redis let a record go: its time passes, and its bytes with it.  Each
-- record says what it was counted as: bytes, and where (held).  'kept' is there while none of the tenant's keys expires.
-- Beside them stand the places of requests that are storing their images: reserved:{until when}:{token} → jobs.

-- What a job's or batch's record takes beside its texts, with its places in lists, its attempts and the idempotency key; and
-- what the webhooks about it take.  Source: benchmarks/growth_ledger.py.
local RECORD_BYTES, WEBHOOK_BYTES = 1536, 2560
-- Bytes are counted until one of so many times in a record's life, rounded up.
local EXPIRY_STEPS = 64
local RESERVED = 'reserved:'

-- The field for a record that expires at at_ms, after a life of life_ms.
local function expired_by(at_ms, life_ms)
  local step = math.max(1, math.ceil(life_ms / EXPIRY_STEPS))
  return string.format('%.0f', math.ceil(at_ms / step) * step)
end

-- Count a record that is counted already with other bytes, or elsewhere; then the caller stores the two in it.
-- before: its bytes and where they are counted; false for a record from before bytes were counted, which stays uncounted.
local function recount(tenant, before, bytes, held)
  if not before[1] then return false end
  local left = redis.call('HINCRBY', bytes_key(tenant), before[2], -before[1])
  if left <= 0 and before[2] ~= 'live' then redis.call('HDEL', bytes_key(tenant), before[2]) end
  if bytes > 0 then redis.call('HINCRBY', bytes_key(tenant), held, bytes) end
  return true
end

-- Have a record expire at at_ms, after a life of life_ms, and count its bytes until then.  record: its tenant, its bytes
-- and where they are counted.
local function expire_record(subject, record, now, at_ms, life_ms)
  local held = expired_by(at_ms, life_ms)
  if record[3] == held then return end
  redis.call('PEXPIRE', record_key(subject), math.max(at_ms - now, 1000))
  if recount(record[1], {record[2], record[3]}, tonumber(record[2]), held) then
    redis.call('HSET', record_key(subject), 'held', held)
  end
end

-- Keep what belongs to a tenant that had no job in flight: a courier may have given it an expiry.
local function keep_tenant(tenant, now)
  redis.call('ZADD', TENANTS, now, tenant)
  redis.call('HSET', bytes_key(tenant), 'kept', 1)
  redis.call('PERSIST', jobs_key(tenant))
  redis.call('PERSIST', bytes_key(tenant))
end

-- What is counted for a tenant:
--   sum (of all bytes), next_ms (when the next ones expire; nil for not before something ends), kept (whether its keys are
--   kept already), reserved (the places of its other requests),
--   gone (fields to be dropped by the caller: what has expired, and its own reservation; token: of that, '' for none).
local function bytes_held(tenant, now, token)
  local counted = redis.call('HGETALL', bytes_key(tenant))
  local held = {sum = 0, kept = false, reserved = 0, gone = {}}
  for i = 1, #counted, 2 do
    local field, value = counted[i], tonumber(counted[i + 1])
    local by_ms, until_ms, whose = tonumber(field), string.match(field, '^' .. RESERVED .. '(%d+):(.*)$')
    if field == 'kept' then
      held.kept = true
    elseif until_ms and (whose == token or tonumber(until_ms) < now) or by_ms and (by_ms <= now or value <= 0) then
      table.insert(held.gone, field)
    elseif until_ms then
      held.reserved = held.reserved + value
    else
      held.sum = held.sum + value
      if by_ms then held.next_ms = math.min(held.next_ms or by_ms, by_ms) end
    end
  end
  return held
end
