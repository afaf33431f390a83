#!lua flags=allow-oom
-- RECONCILE: compare some entries of a set, list or count with the records, and mend what differs.
-- ARGV: what (the functions of `compare` below), whose (a tenant, a queue, or both with a space between; '' otherwise),
--       cursor ('0' to begin), limit (a hint), retention_ms
-- Returns {cursor ('0' when all were compared), {name, …} (tenants, queues, or nodes that are gone), {what was mended, how
-- often, …}}
-- requires: keys, bytes, webhooks, batches, turns
local what, whose, cursor, limit, retention_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
-- A node that is away for longer has another name by now, or announces itself anew.
local NODE_GONE_S = 3600
-- The default of a spec.
local START_DEADLINE_S = 86400

local mended, names = {}, {}
local function mend(kind) mended[kind] = (mended[kind] or 0) + 1 end

local function scan(command, key)
  local reply = redis.call(command, key, cursor, 'COUNT', limit)
  cursor = reply[1]
  return reply[2]
end

-- The members of a sorted set.
local function members(key)
  local flat, found = scan('ZSCAN', key), {}
  for i = 1, #flat, 2 do table.insert(found, flat[i]) end
  return found
end

local function is_open(status) return status == 'queued' or status == 'processing' end

local compare = {}

-- A tenant's list: expired records leave it, and a job that has not ended is in flight.
function compare.jobs(tenant)
  for _, id in ipairs(members(jobs_key(tenant))) do
    local status = redis.call('HGET', job_key(id), 'status')
    if not status then
      redis.call('ZREM', jobs_key(tenant), id)
    elseif is_open(status) and redis.call('SADD', inflight_key(tenant), id) == 1 then
      mend('in_flight')
    end
  end
end

-- A job that is in flight waits in its queue, or has a lease; and where all were met in one step, what they hold is what the
-- tenant's count says.
function compare.in_flight(tenant)
  local first, sum, batches, takes_turns = cursor == '0', 0, {}, {}
  for _, id in ipairs(scan('SSCAN', inflight_key(tenant))) do
    local job = redis.call('HMGET', job_key(id), 'status', 'queue', 'created_ms', 'summary', 'bytes', 'held', 'batch', 'started_ms',
      'start_by_ms')
    if not job[1] or not is_open(job[1]) then
      redis.call('SREM', inflight_key(tenant), id)
      mend('in_flight')
    elseif job[1] == 'processing' then
      if redis.call('ZADD', LEASES, 'NX', now, id) == 1 then mend('leases') end
    else
      local waits = redis.call('ZSCORE', waiting_key(job[2], tenant), id) or redis.call('ZSCORE', returned_key(job[2]), id)
      if not waits or not redis.call('ZSCORE', queued_key(job[2]), id) then
        leave_queue(job[2], tenant, id)
        join_turn(job[2], tenant, id, job[3])
        take_turns(job[2], tenant)
        mend('queued')
      elseif not takes_turns[job[2]] and redis.call('EXISTS', waiting_key(job[2], tenant)) == 1 then
        takes_turns[job[2]] = true
        if not redis.call('ZSCORE', turns_key(job[2]), tenant) then
          take_turns(job[2], tenant)
          mend('queued')
        end
      end
      if not job[8] and not redis.call('ZSCORE', DEADLINES, id) then  -- once started, a job has none
        local start_deadline_s = job[4] and cjson.decode(job[4]).start_deadline_s or START_DEADLINE_S
        redis.call('ZADD', DEADLINES, math.max(now, job[9] or job[3] + start_deadline_s * 1000), id)
        mend('deadlines')
      end
    end
    if job[6] == 'live' then sum = sum + job[5] end
    if job[7] then batches[job[7]] = true end
  end
  if first and cursor == '0' then
    for _, batch in ipairs(redis.call('SMEMBERS', expanding_key(tenant))) do batches[batch] = true end
    for batch in pairs(batches) do
      local counted = redis.call('HMGET', batch_key(batch), 'bytes', 'held')
      if counted[2] == 'live' then sum = sum + counted[1] end
    end
    if tonumber(redis.call('HGET', bytes_key(tenant), 'live') or 0) ~= sum then
      redis.call('HSET', bytes_key(tenant), 'live', sum)
      mend('bytes')
    end
  end
end

-- What is left of a tenant with nothing in flight expires after the last of its records.
function compare.log(tenant)
  for _, id in ipairs(members(log_key(tenant))) do
    local state = redis.call('HMGET', delivery_key(id), 'state', 'url', 'next_ms')
    if not state[1] then
      redis.call('ZREM', log_key(tenant), id)
    elseif state[1] == 'waiting' and not redis.call('ZSCORE', WAITING, id) then
      enqueue_delivery(id, tenant, state[2], tonumber(state[3] or now), now)
      mend('waiting')
    end
  end
  if cursor ~= '0' or redis.call('EXISTS', inflight_key(tenant), expanding_key(tenant)) > 0 then return end
  for _, key in ipairs({jobs_key(tenant), bytes_key(tenant)}) do
    if redis.call('TTL', key) == -1 then
      redis.call('PEXPIRE', key, math.ceil(life_after_end_ms(retention_ms, true) * (1 + 2 / EXPIRY_STEPS)))
    end
  end
  redis.call('HDEL', bytes_key(tenant), 'kept')
  if redis.call('EXISTS', jobs_key(tenant), log_key(tenant)) == 0 then redis.call('ZREM', TENANTS, tenant) end
end

-- What waits in a queue is queued: in the queue's list, in those of its tenants, and among what was handed back.
local function compare_queued(key, queue, tenant)
  for _, id in ipairs(members(key)) do
    local job = redis.call('HMGET', job_key(id), 'status', 'queue', 'tenant')
    if job[1] ~= 'queued' or job[2] ~= queue then
      leave_queue(queue, tenant or job[3] or '', id)
      mend('queued')
    end
  end
end
function compare.queued(queue) compare_queued(queued_key(queue), queue) end
function compare.returned(queue) compare_queued(returned_key(queue), queue) end

function compare.waiting_of(queue_and_tenant)
  local queue, tenant = string.match(queue_and_tenant, '^(%S+) (%S+)$')
  compare_queued(waiting_key(queue, tenant), queue, tenant)
end

-- What has a lease is running, and what has a deadline is queued.
local function compare_status(key, status, kind)
  for _, id in ipairs(members(key)) do
    local its_status = redis.call('HGET', job_key(id), 'status')
    if its_status ~= status then
      redis.call('ZREM', key, id)
      mend(kind)
    end
  end
end
function compare.leases() compare_status(LEASES, 'processing', 'leases') end
function compare.deadlines() compare_status(DEADLINES, 'queued', 'deadlines') end

-- What waits to be sent is a webhook that has not ended, and waits in its host's queue.
function compare.waiting()
  for _, id in ipairs(members(WAITING)) do
    local delivery = redis.call('HMGET', delivery_key(id), 'state', 'url', 'tenant', 'next_ms')
    if delivery[1] ~= 'waiting' then
      redis.call('ZREM', WAITING, id)
      mend('waiting')
    else
      local tenant, host = delivery[3], host_of(delivery[2])
      if not redis.call('ZSCORE', due_key(tenant, host), id) and not redis.call('ZSCORE', sending_key(tenant, host), id) then
        enqueue_delivery(id, tenant, delivery[2], tonumber(delivery[4] or now), now)
        mend('waiting')
      end
    end
  end
end

-- An expanded batch has as many jobs queued and running as are open, and a courier looks after it.
local function compare_expanded(id, said)
  redis.call('ZADD', BATCH_WORK, 'NX', now, id)
  redis.call('SADD', expanding_key(said.tenant), id)
  local counts = {queued = 0, processing = 0}
  for _, job in ipairs(redis.call('ZRANGE', batch_open_key(id), 0, -1)) do
    local status = redis.call('HGET', job_key(job), 'status')
    if is_open(status) then counts[status] = counts[status] + 1 else to_be_collected(id, job) end
  end
  -- Those that are open nowhere: how they ended is not known.
  local lost = said.queued + said.processing - counts.queued - counts.processing
  if lost > 0 then redis.call('HINCRBY', batch_key(id), 'expired', lost) end
  if tonumber(said.queued) ~= counts.queued or tonumber(said.processing) ~= counts.processing then
    redis.call('HSET', batch_key(id), 'queued', counts.queued, 'processing', counts.processing)
    mend('batches')
  end
end

-- An open batch has as many jobs queued and running as it says.  Of a job that was deleted, only that it had ended is known.
-- One at a time: each has up to 1,000 jobs.
function compare.batches()
  local batches = redis.call('ZRANGE', BATCHES, cursor, cursor)
  cursor = #batches > 0 and string.format('%.0f', cursor + 1) or '0'
  for _, id in ipairs(batches) do
    local key = batch_key(id)
    local batch = redis.call('HGETALL', key)
    local said = {}
    for i = 1, #batch, 2 do said[batch[i]] = batch[i + 1] end
    if not said.tenant or said.ended_ms then
      redis.call('ZREM', BATCHES, id)
      mend('batches')
    elseif said.source then
      compare_expanded(id, said)
    else
      local counts = {queued = 0, processing = 0, succeeded = 0, failed = 0, canceled = 0, expired = 0}
      local unknown = 0
      for _, job in ipairs(redis.call('LRANGE', batch_jobs_key(id), 0, -1)) do
        local status = redis.call('HGET', job_key(job), 'status')
        if status then counts[status] = counts[status] + 1 else unknown = unknown + 1 end
      end
      local differs = false
      for _, status in ipairs({'succeeded', 'failed', 'canceled', 'expired'}) do
        -- Those without a record ended as the batch says they did.
        local more = math.min(unknown, math.max(0, said[status] - counts[status]))
        counts[status], unknown = counts[status] + more, unknown - more
      end
      counts.expired = counts.expired + unknown
      for status, count in pairs(counts) do
        if tonumber(said[status]) ~= count then
          redis.call('HSET', key, status, count)
          differs = true
        end
      end
      if differs then mend('batches') end
      if counts.queued + counts.processing == 0 then
        complete_batch(id, now, retention_ms)
        if not differs then mend('batches') end
      end
    end
  end
end

function compare.tenants() names = members(TENANTS) end

function compare.turns(queue) names = members(turns_key(queue)) end

function compare.queues()
  cursor = '0'
  names = redis.call('SMEMBERS', QUEUES)
end

-- Nodes that have not been seen for long: their own queues are left.
function compare.nodes()
  cursor = '0'
  local gone_s = math.floor(now / 1000) - NODE_GONE_S
  names = redis.call('ZRANGEBYSCORE', WORKERS, '-inf', gone_s, 'LIMIT', 0, limit)
end

compare[what](whose)

local report = {}
for kind, count in pairs(mended) do
  redis.call('HINCRBY', TOTALS, 'mended_' .. kind, count)
  table.insert(report, kind)
  table.insert(report, count)
end
return {cursor, names, report}
