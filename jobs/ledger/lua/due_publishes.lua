#!lua flags=allow-oom
-- The outbox: take the jobs that are due to be published.  Each stays in the outbox until it is claimed, and is due
-- again after a delay that doubles, so that a lost message is published again.  While the queue holds as many
-- messages as jobs wait for it, none was lost; the job's turn has simply not come.
-- ARGV: limit, wait_ms
-- Returns {id, queue, id, queue, …}
-- requires: keys
local now = now_ms()
local due = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', OUTBOX, '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local job = redis.call('HMGET', job_key(id), 'status', 'queue', 'publishes')
  if job[1] == 'queued' then
    local published = tonumber(job[3])
    redis.call('ZADD', OUTBOX, now + ARGV[2] * 2 ^ math.min(published, 6), id)
    if published == 0 or redis.call('LLEN', job[2]) < redis.call('ZCARD', queued_key(job[2])) then
      redis.call('HINCRBY', job_key(id), 'publishes', 1)
      table.insert(due, id)
      table.insert(due, job[2])
    end
  else
    redis.call('ZREM', OUTBOX, id)
  end
end
return due
