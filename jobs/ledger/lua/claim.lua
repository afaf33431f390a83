#!lua flags=allow-oom
-- CLAIM: give the next waiting job to a worker, for as long as it renews the lease.
-- ARGV: worker, lease_ms, max_attempts, retention_ms, token (of this call: a second run finds its own claim),
--       process, number (this call is the process' number-th; it makes one after another),
--       weights (JSON: tenant → its share), queue, … (the most urgent first)
-- Returns {'claimed', a queue where more jobs can be claimed ('' for none), how many, the record's fields and values …}
--       | {'none'} (nothing to claim; the worker is shutting down; or the call came late, and nobody waits for its answer)
--       | {'again'} (many that could not be claimed were ended; call again)
-- requires: keys, webhooks, batches, turns, jobs
local worker, max_attempts, retention_ms, token = ARGV[1], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local process, number, FIRST_QUEUE = ARGV[6], tonumber(ARGV[7]), 9
local kept = redis.call('MGET', latest_key(worker), draining_key(worker), CLOCK)
local latest, draining, now = read_latest(kept[1]), kept[2], now_by(kept[3])
-- The most jobs that one call ends because they can no longer be claimed.
local MOST_ENDED = 50
-- Longer than any job runs: its time limit is an hour at most.
local LATEST_MS = 7200000

-- none_returned: of which queues it is known that nothing that was handed back waits in them.
local function claimed(record, none_returned)
  local more, waiting = '', 0
  for i = FIRST_QUEUE, #ARGV do
    waiting = claimable(ARGV[i], now, none_returned[ARGV[i]])
    if waiting > 0 then
      more = ARGV[i]
      break
    end
  end
  local answer = {'claimed', more, waiting}
  for field, value in pairs(record) do
    table.insert(answer, field)
    table.insert(answer, tostring(value))
  end
  return answer
end

-- The whole record of a job, by field.
local function record_of(id)
  local flat, record = redis.call('HGETALL', job_key(id)), {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  return record
end

if latest.token == token then return claimed(record_of(latest.id), {}) end
if draining or latest.process == process and tonumber(latest.number) > number then return {'none'} end

local weights = cjson.decode(ARGV[8])

-- A node without its slot, `sam-gpu0@host` for `sam-gpu0.1@host`: nodes that share a device share what is wrong with it.
local function device_of(node)
  return (string.gsub(node, '^(sam%-[^@.]+)%.%d+(@.*)$', '%1%2'))
end

-- Whether a job is left to other devices: this one has just handed it back for a fault of its own.
local function is_avoided(avoid)
  local until_ms, node = string.match(avoid or '', '^(%d+) (.*)$')
  return node ~= nil and device_of(node) == device_of(worker) and tonumber(until_ms) > now
end

-- Claim a job; return its record, false if it could not be claimed, nil for one that is left to other workers.
-- of: its tenant, if it waited in turn and was taken out of its queue.
local function claim(id, queue, of)
  local job = record_of(id)
  local attempt, tenant = tonumber(job.attempt), job.tenant or of or ''
  if job.status ~= 'queued' then  -- its record is gone: nothing else takes it out of the lists
    leave_queue(queue, tenant, id)
    redis.call('ZREM', DEADLINES, id)
    if not job.status then redis.call('SREM', inflight_key(tenant), id) end
    return false
  end
  if job.cancel then
    cancel_job(id, job, now, retention_ms)
    return false
  end
  if not job.started_ms then  -- once started, a job has no deadline
    local start_by_ms = job.start_by_ms or redis.call('ZSCORE', DEADLINES, id)
    if start_by_ms and tonumber(start_by_ms) <= now then
      expire(id, job, now, retention_ms)
      return false
    end
  end
  if attempt >= max_attempts then
    exhaust(id, job, now, retention_ms)
    return false
  end
  if not of then
    if is_avoided(job.avoid) then return nil end
    leave_queue(queue, tenant, id)
  end

  local changes = {status = 'processing', worker = worker, stage = 'fetching', claimed_ms = now, token = token,
    started_ms = job.started_ms or now, attempt = attempt + 1, fence = job.fence + 1, version = (job.version or 1) + 1}
  if not job.started_ms then redis.call('ZREM', DEADLINES, id) end
  if job.done then
    redis.call('HDEL', job_key(id), 'done', 'total', 'masks')
    job.done, job.total, job.masks = nil, nil, nil
  end
  local fields = {}
  for field, value in pairs(changes) do
    job[field] = value
    table.insert(fields, field)
    table.insert(fields, value)
  end
  redis.call('HSET', job_key(id), unpack(fields))
  redis.call('ZADD', LEASES, now + ARGV[2], id)
  redis.call('SET', latest_key(worker), table.concat({process, ARGV[7], token, id}, ' '), 'PX', LATEST_MS)
  charge_turn(queue, tenant, weights)

  if job.batch then move_in_batch(job.batch, 'queued', 'processing', now) end

  if attempt == 0 and job.webhook_url and asked_for(job.webhook_events, 'started') then
    local delivery = delivery_id(id, tonumber(job.ends or 0) + 1, 'started')
    -- After an attempt that was handed back uncharged, the next one is the first again.
    if redis.call('EXISTS', delivery_key(delivery)) == 0 then
      queue_delivery(delivery, tenant, id, 'started', job.webhook_url, now)
    end
  end
  return job
end

local ended, none_returned = 0, {}
for i = FIRST_QUEUE, #ARGV do
  local queue, passed = ARGV[i], 0
  repeat
    local id, tenant, none = take_next(queue, now, passed)
    none_returned[queue] = none
    local job = id and claim(id, queue, tenant)
    if job then return claimed(job, none_returned) end
    if job == nil then passed = passed + 1 elseif id then ended = ended + 1 end
    if ended == MOST_ENDED then return {'again'} end
  until not id
end
return {'none'}
