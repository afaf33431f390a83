-- The outbox: take the jobs that are due to be published.  Each stays in the outbox until it is claimed, due
-- again after a wait that doubles, so that a message that was lost is sent once more.
-- ARGV: limit, wait_ms
-- Returns {id, queue, id, queue, …}
local now = now_ms()
local due = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'mf:outbox', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local job = redis.call('HMGET', job_key(id), 'status', 'queue', 'publishes')
  if job[1] == 'queued' then
    redis.call('HINCRBY', job_key(id), 'publishes', 1)
    redis.call('ZADD', 'mf:outbox', now + ARGV[2] * 2 ^ math.min(tonumber(job[3]), 8), id)
    table.insert(due, id)
    table.insert(due, job[2])
  else
    redis.call('ZREM', 'mf:outbox', id)
  end
end
return due
