#!lua flags=allow-oom
-- RELEASE: hand a job back, to be published again after delay_ms.
-- ARGV: id, fence, delay_ms, charged ('1': the attempt counts), outcome (why)
-- Returns 'ok' | 'fenced'
-- requires: keys, jobs
local id = ARGV[1]
if not holds(id, ARGV[2]) then return fenced() end
if ARGV[4] ~= '1' then redis.call('HINCRBY', job_key(id), 'attempt', -1) end
local now = now_ms()
requeue_job(id, ARGV[5], now, now + ARGV[3])
return 'ok'
