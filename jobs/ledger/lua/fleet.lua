#!lua flags=allow-oom
-- FLEET: what each model's workers have to do and how many there are, at one moment.
-- A running job's queue stands in its record, so this reads two fields of each.
-- ARGV: JSON: ttl_s (of workers), list_jobs (whether to return the running jobs), models = [{name, queues = [queue, …]}, …],
--       shared (the one of them whose queues the workers of others drain, too)
-- Returns {{workers that start, take jobs, shut down, have withdrawn, take jobs and run one of other queues,
--           {jobs queued, when the oldest was created in ms ('' for none), the queue's pace in ms ('' while unknown),
--            running, those of them whose worker shuts down}, … (for each queue)}, … (for each model)},
--         the ledger's time in ms, {worker, job, …}
-- requires: keys
local ask, now = cjson.decode(ARGV[1]), now_ms()
local since_s = math.floor(now / 1000) - ask.ttl_s
local running, of_draining, jobs, draining = {}, {}, {}, {}
local is_shared, takes_shared, elsewhere = {}, {}, {}

for _, model in ipairs(ask.models) do
  for _, node in ipairs(redis.call('ZRANGEBYSCORE', draining_nodes_key(model.name), since_s, '+inf')) do draining[node] = true end
  if model.name == ask.shared then
    for _, queue in ipairs(model.queues) do is_shared[queue] = true end
  end
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', serving_key(ask.shared), since_s, '+inf')) do takes_shared[node] = true end

-- Count a running job at the models whose workers it keeps from their own jobs.
local function count_elsewhere(queue, worker)
  if not is_shared[queue] then
    if takes_shared[worker] then elsewhere[ask.shared] = (elsewhere[ask.shared] or 0) + 1 end
    return
  end
  for _, model in ipairs(ask.models) do
    if model.name ~= ask.shared and redis.call('ZSCORE', serving_key(model.name), worker) then
      elsewhere[model.name] = (elsewhere[model.name] or 0) + 1
    end
  end
end

for _, id in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
  local job = redis.call('HMGET', job_key(id), 'queue', 'worker')
  local queue, worker = job[1], job[2]
  if queue then
    running[queue] = (running[queue] or 0) + 1
    if worker then count_elsewhere(queue, worker) end
    if draining[worker] then of_draining[queue] = (of_draining[queue] or 0) + 1 end
    if ask.list_jobs and worker then
      table.insert(jobs, worker)
      table.insert(jobs, id)
    end
  end
end

local function count(key) return redis.call('ZCOUNT', key, since_s, '+inf') end

local models = {}
for _, model in ipairs(ask.models) do
  local answer = {count(starting_key(model.name)), count(serving_key(model.name)), count(draining_nodes_key(model.name)),
    count(withdrawn_key(model.name)), elsewhere[model.name] or 0}
  for _, queue in ipairs(model.queues) do
    table.insert(answer, {redis.call('ZCARD', queued_key(queue)),
      redis.call('ZRANGE', queued_key(queue), 0, 0, 'WITHSCORES')[2] or '',
      redis.call('HGET', TOTALS, pace_field(queue)) or '', running[queue] or 0, of_draining[queue] or 0})
  end
  table.insert(models, answer)
end
return {models, string.format('%.0f', now), jobs}
