-- Bytes: what a tenant's records hold in Redis, counted for its quota.
-- requires: keys
--
-- A tenant's hash holds 'live', for the records without an expiry, and for all others their bytes by the time at which
-- they have expired.  So nothing has to notice that Redis let a record go: its time passes, and its bytes with it.  Each
-- record says what it was counted as: bytes, and where (held).  'kept' is there while none of the tenant's keys expires.

-- What a job's or batch's record takes beside its texts, with its places in lists, its attempts and the idempotency key; and
-- what the webhooks about it take.  Source: benchmarks/growth_ledger.py.
local RECORD_BYTES, WEBHOOK_BYTES = 1536, 2560
-- Bytes are counted until one of so many times in a record's life, rounded up.
local EXPIRY_STEPS = 64

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

-- All bytes of a tenant, when the next ones expire ('' for not before something ends), and whether its keys are kept
-- already; what has expired is dropped.
local function bytes_held(tenant, now)
  local counted, sum, next_ms, past, kept = redis.call('HGETALL', bytes_key(tenant)), 0, nil, {}, false
  for i = 1, #counted, 2 do
    local by_ms, bytes = tonumber(counted[i]), tonumber(counted[i + 1])
    if counted[i] == 'kept' then
      kept = true
    elseif by_ms and (by_ms <= now or bytes <= 0) then
      table.insert(past, counted[i])
    else
      sum = sum + bytes
      if by_ms and (not next_ms or by_ms < next_ms) then next_ms = by_ms end
    end
  end
  if #past > 0 then redis.call('HDEL', bytes_key(tenant), unpack(past)) end
  return sum, next_ms or '', kept
end
