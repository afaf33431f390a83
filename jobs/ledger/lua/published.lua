#!lua flags=allow-oom
-- PUBLISHED: record that a job's message is in the queue; the job is due again only if nobody claims it.
-- ARGV: id, wait_ms
-- requires: keys
local id = ARGV[1]
if redis.call('HGET', job_key(id), 'status') == 'queued' then
  redis.call('HINCRBY', job_key(id), 'publishes', 1)
  redis.call('ZADD', OUTBOX, now_ms() + ARGV[2], id)
end
return 'ok'
