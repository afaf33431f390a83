#!lua flags=allow-oom
-- SILENT: the queues where jobs can be claimed and no bell lies: the bells were lost, or a delay has passed.
-- Returns {queue, how many jobs, …}
-- requires: keys, turns
local now, silent = now_ms(), {}
for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
  if redis.call('ZCARD', queued_key(queue)) == 0 then
    redis.call('SREM', QUEUES, queue)
    redis.call('DEL', turns_key(queue))  -- nobody waits, so nobody is ahead of another
  else
    local jobs = claimable(queue, now)
    if jobs > 0 and redis.call('LLEN', queue) == 0 then
      redis.call('HINCRBY', TOTALS, 'rung', 1)
      table.insert(silent, queue)
      table.insert(silent, jobs)
    end
  end
end
return silent
