-- CREATE: record jobs, and their batch if they have one; all or none, once per idempotency key.
-- Or, with ask: say whether they would be recorded, before their images are stored, and reserve what they need.
-- ARGV: JSON, job id, spec, job id, spec, …
-- The JSON: schema (the version that this program writes),
--   tenant, queue, start_deadline_ms, webhook_url ('' for none), webhook_events,
--   bucket (the service's; '' for unknown), images (the name of each job's image, '' for none; or empty),
--   request_id, traceparent (of the request; '' for unknown),
--   sources, file_names (of each job's image, as people see it; or empty),
--   idempotency_key ('' for none), body_digest, idempotency_ttl_ms,
--   summary (of the specs, which is what they have in common),
--   the limits: max_in_flight, max_bytes (of the tenant's records), max_backlog_ms (0 for none), workers, more_urgent (the
--   queues that are drained before this one), weights (tenant → its share),
--   reservation (of these jobs: what was returned; '' for none),
--   for a batch: batch = {id, metadata (JSON), completed_url (where batch.completed is sent; '' for nowhere)},
--     for one that couriers expand, with no jobs yet: source, plan (see open_expansion), most_open (of the tenant's);
--   for a step of its expansion: step = {batch (its id), numbers (of each job), …}, see note_step,
--   to learn which node has the one job's image: call = {model, seen_within_s, wait_ms}, see node_to_call,
--   and to ask: ask = {bytes (of images to be stored), max_bytes, window_h (for how long they count), reserve_ms,
--     token ('' to reserve no places)}
-- Returns {'created', id, node to call ('' for none)} | {'known', id} | {'key_reused', id} | {'over_quota', jobs in flight}
--         | {'over_bytes', in how many ms the next records expire ('' for not before a job ends)}
--         | {'too_many_batches', how many the tenant has open} | {'moved', batch} (it is not at this step any more)
--         | {'backlog_full', how long the last job would wait, in ms}
--         | {'over_storage', bytes of images stored} | {'reserved', hour in which the bytes count, reservation};
--         id: of the batch, otherwise of the one job
-- It has no flag, so a full Redis rejects it: no new work is accepted then.  That holds as long as its first write is one
-- that adds something; after one that removes, a full Redis lets the rest pass.
-- requires: keys, bytes, batches, turns
local new = cjson.decode(ARGV[1])
local now, to_the_microsecond = exact_now_ms()
local tenant, queue, batch, ask = new.tenant, new.queue, new.batch, new.ask
local reservation = new.reservation or ''
local token = ask and ask.token or string.match(reservation, ':([^:]*)$') or ''
local jobs = (#ARGV - 1) / 2
local step = new.step
local id = batch and batch.id or step and step.batch or ARGV[2]

-- What was recorded under the idempotency key; nil for nothing.
local function known()
  if new.idempotency_key == '' then return nil end
  local found = redis.call('HMGET', idempotency_key(tenant, new.idempotency_key), 'job', 'digest')
  return found[1] and {found[2] == new.body_digest and 'known' or 'key_reused', found[1]}
end

-- The fields that say which request it was.
local origin = {}
for _, name in ipairs({'request_id', 'traceparent'}) do
  if (new[name] or '') ~= '' then
    table.insert(origin, name)
    table.insert(origin, new[name])
  end
end

-- What each record takes.
local origin_bytes = #(new.request_id or '') + #(new.traceparent or '')
local sources, file_names = new.sources or {}, new.file_names or {}
local function bytes_of(spec, number)
  return RECORD_BYTES + origin_bytes + #spec + #new.summary + #(sources[number] or '') + #(file_names[number] or '') +
    (new.webhook_url ~= '' and WEBHOOK_BYTES or 0)
end
local batch_bytes = batch and RECORD_BYTES + origin_bytes + #batch.metadata + #(batch.plan or '') + #(batch.source or '') +
  jobs * #(ARGV[2] or '') or 0
local function new_bytes()
  local sum = batch_bytes
  for i = 3, #ARGV, 2 do sum = sum + bytes_of(ARGV[i], (i - 1) / 2) end
  return sum
end

-- Why no more images are stored for the tenant; nil when they may be.  Counts by the hour, to keep few entries.
local function storage_refusal()
  local key, hour, stored, old = stored_key(tenant), math.floor(now / 3600000), 0, {}
  local counts = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for place = 1, #counts, 2 do
    if counts[place] + ask.window_h <= hour then
      old[#old + 1] = counts[place]
    else
      stored = stored + counts[place + 1]
    end
  end
  if stored + ask.bytes > ask.max_bytes then return {'over_storage', string.format('%.0f', stored)} end
  redis.call('ZINCRBY', key, ask.bytes, string.format('%.0f', hour))
  for _, member in ipairs(old) do redis.call('ZREM', key, member) end
  redis.call('PEXPIRE', key, ask.window_h * 3600000)
end

local in_flight, held = redis.call('SCARD', inflight_key(tenant)), nil

-- Drop what this request had reserved so far, and what has expired.
local function give_back()
  local gone = held and held.gone or {reservation ~= '' and reservation or nil}
  if gone[1] then redis.call('HDEL', bytes_key(tenant), unpack(gone)) end
end

-- Reserve places for as long as images are stored, beside the bytes of the tenant's records (see bytes.lua).
local function reserve()
  if token == '' then return '' end
  local name = RESERVED .. string.format('%.0f:', now + ask.reserve_ms) .. token
  redis.call('HSET', bytes_key(tenant), name, jobs)
  if not held.kept and redis.call('PTTL', bytes_key(tenant)) < ask.reserve_ms then  -- or it has none
    redis.call('PEXPIRE', bytes_key(tenant), ask.reserve_ms)
  end
  return name
end

-- Why this many more jobs are rejected; nil when they are accepted.
local function refusal(bytes)
  held = bytes_held(tenant, now, token)
  local taken = in_flight + held.reserved
  if jobs > 0 and taken + jobs > new.max_in_flight then return {'over_quota', tostring(taken)} end
  if held.sum + bytes > new.max_bytes then
    return {'over_bytes', held.next_ms and string.format('%.0f', held.next_ms - now) or ''}
  end

  if batch and batch.plan and redis.call('SCARD', expanding_key(tenant)) >= batch.most_open then
    return {'too_many_batches', tostring(batch.most_open)}
  end

  -- The jobs before the last one, times the pace of its queue; unknown before the first job has ended or without workers.
  if new.max_backlog_ms == 0 or new.workers == 0 then return nil end
  local pace = redis.call('HGET', TOTALS, pace_field(queue))
  if not pace then return nil end
  local own = redis.call('ZCARD', waiting_key(queue, tenant)) + jobs - 1
  local ahead = ahead_in_turn(queue, tenant, own, new.weights, now)
  for _, other in ipairs(new.more_urgent) do ahead = ahead + redis.call('ZCARD', queued_key(other)) end
  local wait_ms = math.floor(ahead * pace / new.workers)
  return wait_ms > new.max_backlog_ms and {'backlog_full', tostring(wait_ms)} or nil
end

local function record_batch()
  redis.call('HSET', batch_key(id), 'tenant', tenant, 'created_ms', now, 'metadata', batch.metadata, 'ends', 0,
    'queued', jobs, 'processing', 0, 'succeeded', 0, 'failed', 0, 'canceled', 0, 'expired', 0, 'bytes', batch_bytes, 'held', 'live',
    unpack(origin))
  redis.call('ZADD', BATCHES, now, id)
  if batch.plan then open_expansion(id, tenant, batch.source, batch.plan, now) end
  if batch.completed_url ~= '' then redis.call('HSET', batch_key(id), 'webhook_url', batch.completed_url) end
end

-- The fields that only some jobs have; of this call, all or none.
local shared = {unpack(origin)}
if new.webhook_url ~= '' then
  for _, part in ipairs({'webhook_url', new.webhook_url, 'webhook_events', new.webhook_events}) do table.insert(shared, part) end
end
if batch or step then
  table.insert(shared, 'batch')
  table.insert(shared, id)
end
if (new.bucket or '') ~= '' then
  table.insert(shared, 'bucket')
  table.insert(shared, new.bucket)
end

-- Record a job in state queued.  place: its number among those of this call.
local function record_job(job, spec, place)
  local own = {unpack(shared)}
  for field, of_each in pairs({image = new.images, source = sources, file_name = file_names}) do
    if (of_each[place + 1] or '') ~= '' then
      table.insert(own, field)
      table.insert(own, of_each[place + 1])
    end
  end
  redis.call('HSET', job_key(job), 'id', job, 'tenant', tenant, 'queue', queue, 'spec', spec, 'summary', new.summary,
    'status', 'queued', 'created_ms', now, 'attempt', 0, 'fence', 0, 'version', 1, 'bytes', bytes_of(spec, place + 1), 'held', 'live',
    'spec_bytes', #spec, 'start_by_ms', now + new.start_deadline_ms, unpack(own))
  if step then
    redis.call('ZADD', batch_open_key(id), step.numbers[place + 1], job)
  elseif batch then
    redis.call('RPUSH', batch_jobs_key(id), job)
  end
  redis.call('SADD', inflight_key(tenant), job)
  redis.call('ZADD', jobs_key(tenant), now, job)
  join_turn(queue, tenant, job, to_the_microsecond(place / 1000))
  redis.call('ZADD', DEADLINES, now + new.start_deadline_ms, job)
  -- The first job of a ledger, which may have been emptied since this program checked its version.
  if redis.call('HINCRBY', TOTALS, 'created', 1) == 1 then redis.call('SET', SCHEMA, new.schema) end
end

-- The node that has the one job's image in memory, if it takes jobs and has none now; '' for no such node.
-- It is named once in wait_ms: what it was called to just before is what it will have.
local function node_to_call()
  local call, image = new.call, new.images[1] or ''
  local node = call and image ~= '' and redis.call('GET', image_node_key(tenant, image))
  if not node then return '' end
  local seen_s = redis.call('ZSCORE', serving_key(call.model), node)
  if not seen_s or tonumber(seen_s) < math.floor(now / 1000) - call.seen_within_s then return '' end
  local latest, draining = unpack(redis.call('MGET', latest_key(node), draining_key(node)))
  if draining then return '' end
  if latest then
    local job = redis.call('HMGET', job_key(read_latest(latest).id), 'status', 'worker')
    if job[1] == 'processing' and job[2] == node then return '' end
  end
  return redis.call('SET', called_key(node), id, 'NX', 'PX', call.wait_ms) and node or ''
end

-- A repeated call: the response to the first was lost.
if not ask and not step and redis.call('EXISTS', record_key(id)) == 1 then return {'created', id, ''} end
if step and not is_at_step(id, step.cursor) then return {'moved', id} end

local bytes = new_bytes()
local decided = known() or refusal(bytes) or ask and storage_refusal()
if decided then
  give_back()
  return decided
end

if ask then
  local hour, name = string.format('%.0f', math.floor(now / 3600000)), reserve()
  give_back()
  return {'reserved', hour, name}
end

if not held.kept then keep_tenant(tenant, now) end
redis.call('HINCRBY', bytes_key(tenant), 'live', bytes)
if batch then record_batch() end
for place = 0, jobs - 1 do record_job(ARGV[2 * place + 2], ARGV[2 * place + 3], place) end
if jobs > 0 then take_turns(queue, tenant) end
if step then note_step(id, step, jobs) end
if new.idempotency_key ~= '' then
  local key = idempotency_key(tenant, new.idempotency_key)
  redis.call('HSET', key, 'job', id, 'digest', new.body_digest)
  redis.call('PEXPIRE', key, new.idempotency_ttl_ms)
end
give_back()
return {'created', id, node_to_call()}
