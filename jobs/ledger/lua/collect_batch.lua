#!lua flags=allow-oom
-- COLLECT_BATCH: note a page of what has ended, which is in the store; the jobs' records are kept for a short time from now.
-- ARGV: batch, pages (before this one), entries (of the list of what has ended, from its beginning, that the page tells of),
--       page (JSON), annotations (in the page), kept_ms, job, …
-- Returns 'ok' | 'moved' (another courier has written this page)
-- requires: keys, bytes
local id, entries, kept_ms, now = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[6]), now_ms()
if redis.call('EXISTS', batch_key(id)) == 0 or redis.call('LLEN', batch_pages_key(id)) ~= tonumber(ARGV[2]) then return 'moved' end
redis.call('RPUSH', batch_pages_key(id), ARGV[4])
redis.call('LTRIM', batch_ended_key(id), entries, -1)
redis.call('HINCRBY', batch_key(id), 'annotations', ARGV[5])
redis.call('HSET', batch_key(id), 'collected_ms', now)
for i = 7, #ARGV do
  local key = job_key(ARGV[i])
  local job = redis.call('HMGET', key, 'tenant', 'bytes', 'held', 'ended_ms', 'webhook_url')
  -- Webhooks are made from the record.
  if job[4] and not job[5] and redis.call('PTTL', key) > kept_ms then
    expire_record(ARGV[i], job, now, now + kept_ms, kept_ms)
  end
end
return 'ok'
