-- Queues: which of a queue's waiting jobs is next.
-- requires: keys
--
-- Jobs that were handed back come first, once they are due.  Then tenants take turns by stride scheduling: each has a
-- virtual time, the lowest is next, and each claim adds 1 / weight.  (Waldspurger and Weihl 1995, "Stride Scheduling:
-- Deterministic Proportional-Share Resource Management".)  A tenant's own jobs are claimed oldest first.

-- The most tenants whose jobs are counted for a place; beyond that it is extrapolated.
local TENANTS_COUNTED = 32
-- The most jobs that were handed back and that one claim leaves to other workers; with more, it looks at no further ones.
local MOST_PASSED = 20

local function weight_of(weights, tenant) return tonumber(weights[tenant]) or 1 end

-- Let a job wait in its tenant's turns; take_turns must follow.
local function join_turn(queue, tenant, id, created_ms)
  redis.call('ZADD', queued_key(queue), created_ms, id)
  redis.call('ZADD', waiting_key(queue, tenant), created_ms, id)
end

-- Let a tenant with waiting jobs take turns.  One that comes back starts with whoever is next, not with the turns that
-- it did not take; one that has just left continues at its own time, so that leaving and coming back gains nothing.
local function take_turns(queue, tenant)
  local first = redis.call('ZRANGE', turns_key(queue), 0, 0, 'WITHSCORES')
  if first[1] ~= tenant then redis.call('ZADD', turns_key(queue), 'NX', first[2] or 0, tenant) end
  -- While anyone takes turns, the queue is known: a courier drops both together.
  if not first[1] then redis.call('SADD', QUEUES, queue) end
end

-- Let a job that was handed back wait until it is due, then to be claimed before all others of its queue.
local function return_to_queue(queue, id, created_ms, due_ms)
  redis.call('ZADD', queued_key(queue), created_ms, id)
  redis.call('ZADD', returned_key(queue), due_ms, id)
  redis.call('SADD', QUEUES, queue)
end

-- A tenant without waiting jobs keeps its virtual time until its turn comes.
local function leave_queue(queue, tenant, id)
  redis.call('ZREM', queued_key(queue), id)
  redis.call('ZREM', waiting_key(queue, tenant), id)
  redis.call('ZREM', returned_key(queue), id)
end

-- Charge a tenant for a claim, also of a job that was handed back: jobs that fail again and again get no more than a share.
local function charge_turn(queue, tenant, weights)
  redis.call('ZADD', turns_key(queue), 'XX', 'INCR', 1 / weight_of(weights, tenant), tenant)
end

-- The job to be claimed next, and its tenant if it waited in turn; nil for none.  One that waited in turn is taken out of its
-- queue; one that was handed back stays, since it may be left to other workers.  passed: how many of those are.
-- Also returns whether nothing that was handed back waits in the queue.
local function take_next(queue, now, passed)
  local returned = passed < MOST_PASSED and redis.call('ZRANGE', returned_key(queue), passed, passed, 'WITHSCORES') or {}
  local none_returned = passed == 0 and not returned[1]
  if returned[1] and tonumber(returned[2]) <= now then return returned[1], nil, none_returned end
  while true do
    local tenant = redis.call('ZRANGE', turns_key(queue), 0, 0)[1]
    if not tenant then return nil, nil, none_returned end
    local oldest = redis.call('ZPOPMIN', waiting_key(queue, tenant))[1]
    if oldest then
      redis.call('ZREM', queued_key(queue), oldest)
      return oldest, tenant, none_returned
    end
    redis.call('ZREM', turns_key(queue), tenant)
  end
end

-- How many of a queue's jobs may be claimed now: all but those that were handed back and are not due.
-- none_returned: whether it is known that nothing that was handed back waits.
local function claimable(queue, now, none_returned)
  local jobs = redis.call('ZCARD', queued_key(queue))
  if jobs == 0 or none_returned then return jobs end
  return jobs - redis.call('ZCOUNT', returned_key(queue), '(' .. now, '+inf')
end

-- How many jobs would be claimed before a job that waits in turn, if none came.  own: those of its tenant before it.
local function ahead_in_turn(queue, tenant, own, weights, now)
  local turns = turns_key(queue)
  local first = redis.call('ZRANGE', turns, 0, 0, 'WITHSCORES')
  local at = tonumber(redis.call('ZSCORE', turns, tenant) or first[2] or 0) + own / weight_of(weights, tenant)
  local before = redis.call('ZRANGE', turns, '-inf', at, 'BYSCORE', 'LIMIT', 0, TENANTS_COUNTED, 'WITHSCORES')
  local others, counted = 0, 0
  for i = 1, #before, 2 do
    local other = before[i]
    if other ~= tenant then
      -- Its turns until then; the one at the same time comes first if its name does.
      local turns_before = (at - before[i + 1]) * weight_of(weights, other)
      local whole = math.ceil(turns_before - 1e-9)
      if other < tenant and whole - turns_before < 1e-9 then whole = whole + 1 end
      others = others + math.min(whole, redis.call('ZCARD', waiting_key(queue, other)))
      counted = counted + 1
    end
  end
  if counted >= TENANTS_COUNTED - 1 then
    local all = redis.call('ZCOUNT', turns, '-inf', at)
    local theirs = redis.call('ZCARD', queued_key(queue)) - redis.call('ZCARD', returned_key(queue))
      - redis.call('ZCARD', waiting_key(queue, tenant))
    others = math.min(theirs, math.floor(others * math.max(1, (all - 1) / counted)))
  end
  return own + others + redis.call('ZCOUNT', returned_key(queue), '-inf', now)
end
