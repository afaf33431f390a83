-- The clock, and every key of the ledger.  No other script spells one out; jobs/ledger/jobs.py says what each holds.

local CLOCK = 'mf:clock'

-- Redis' own time.
local function raw_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What the ledger adds to it: see tick.lua.  A time before a courier's last look is a step back that no courier has
-- noticed yet; until then, the ledger's time stands still.
-- raw: Redis' time now.  clock: what the key holds.
local function offset_ms(raw, clock)
  local seen, offset = string.match(clock or '', '^(%S+) (%S+)$')
  offset = tonumber(offset or 0)
  local back = tonumber(seen or 0) - raw
  return back > 5000 and offset + back or offset
end

-- The ledger's time by what the key of the clock holds, for a script that reads it together with others.
local function now_by(clock)
  local raw = raw_ms()
  return raw + offset_ms(raw, clock)
end

local function now_ms() return now_by(redis.call('GET', CLOCK)) end

-- The same, and a function of it with microseconds plus later_ms: jobs created in one millisecond, or by one script,
-- keep their order.
local function exact_now_ms()
  local time = redis.call('TIME')
  local raw = time[1] * 1000 + math.floor(time[2] / 1000)
  local now = raw + offset_ms(raw, redis.call('GET', CLOCK))
  return now, function(later_ms) return string.format('%.3f', now + time[2] % 1000 / 1000 + later_ms) end
end

local SCHEMA, EPOCH = 'mf:schema', 'mf:epoch'

-- Tenants.
local TENANTS = 'mf:tenants'
local function bytes_key(tenant) return 'mf:bytes:' .. tenant end

-- Jobs.
local LEASES, DEADLINES, TOTALS = 'mf:leases', 'mf:deadlines', 'mf:totals'
-- A channel, not a key: the ids of jobs as they end (jobs/ledger/ends.py).
local ENDED = 'mf:ended'
local function job_key(id) return 'mf:job:' .. id end
local function attempts_key(id) return 'mf:attempts:' .. id end
local function jobs_key(tenant) return 'mf:jobs:' .. tenant end
local function inflight_key(tenant) return 'mf:inflight:' .. tenant end
local function stored_key(tenant) return 'mf:stored:' .. tenant end
local function idempotency_key(tenant, key) return 'mf:idempotency:' .. tenant .. ':' .. key end
local function draining_key(node) return 'mf:draining:' .. node end

-- Which node has a tenant's image in memory; a node's last claim; the job that it was called to.
local function image_node_key(tenant, image) return 'mf:image_node:' .. tenant .. ':' .. image end
local function latest_key(node) return 'mf:latest:' .. node end
-- A node's last claim by what its key holds.  An older program wrote nothing but the id.
local function read_latest(text)
  local process, number, token, id = string.match(text or '', '^(%S+) (%d+) (%S+) (%S+)$')
  return {process = process, number = number, token = token, id = id or text}
end
local function called_key(node) return 'mf:called:' .. node end

-- Queues.
local QUEUES = 'mf:queues'
local function pace_field(queue) return 'pace:' .. queue end  -- of TOTALS
local function queued_key(queue) return 'mf:queued:' .. queue end
local function waiting_key(queue, tenant) return 'mf:waiting:' .. queue .. ':' .. tenant end
local function turns_key(queue) return 'mf:turns:' .. queue end
local function returned_key(queue) return 'mf:returned:' .. queue end

-- Batches.
local BATCHES = 'mf:batches'
local function batch_key(id) return 'mf:batch:' .. id end
local function batch_jobs_key(id) return 'mf:batch_jobs:' .. id end
-- Of batches that couriers expand: which have work to be done, those of a tenant, and of one its open jobs, what has ended
-- and is to be collected, and the pages of what was.
local BATCH_WORK = 'mf:batch_work'
local function expanding_key(tenant) return 'mf:expanding:' .. tenant end
local function batch_open_key(id) return 'mf:batch_open:' .. id end
local function batch_ended_key(id) return 'mf:batch_ended:' .. id end
local function batch_pages_key(id) return 'mf:batch_pages:' .. id end

-- Workers.
local WORKERS, MODELS = 'mf:workers', 'mf:models'
local function worker_key(node) return 'mf:worker:' .. node end
local function serving_key(model) return 'mf:serving:' .. model end
local function withdrawn_key(model) return 'mf:withdrawn:' .. model end
local function starting_key(model) return 'mf:starting:' .. model end
local function draining_nodes_key(model) return 'mf:draining_nodes:' .. model end
local function host_key(host) return 'mf:host:' .. host end

-- Webhooks.  subject: the job or the batch that a webhook is about.
local WAITING, HOST_QUEUES = 'mf:deliveries', 'mf:lanes'
local function delivery_key(id) return 'mf:delivery:' .. id end
local function delivery_attempts_key(id) return 'mf:tries:' .. id end
local function log_key(tenant) return 'mf:deliveries:' .. tenant end
local function deliveries_of_key(subject) return 'mf:told:' .. subject end
local function host_queues_key(tenant) return 'mf:lanes:' .. tenant end
local function due_key(tenant, host) return 'mf:due:' .. tenant .. ':' .. host end
local function sending_key(tenant, host) return 'mf:sending:' .. tenant .. ':' .. host end
local function breaker_key(tenant, host) return 'mf:breaker:' .. tenant .. ':' .. host end
local function webhook_secrets_key(tenant) return 'mf:webhook_secrets:' .. tenant end
local function hung_key(tenant) return 'mf:hung:' .. tenant end
local function receivers_key(tenant) return 'mf:receivers:' .. tenant end
local function redelivered_key(tenant) return 'mf:redelivered:' .. tenant end
local function disabled_key(tenant, url) return 'mf:disabled:' .. tenant .. ':' .. redis.sha1hex(url) end

local function record_key(subject)
  return string.find(subject, '^batch_') and batch_key(subject) or job_key(subject)
end
