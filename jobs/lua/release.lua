-- RELEASE: hand a job back, to be published again after a while.
-- ARGV: id, fence, delay_ms, charged ('1': the attempt counts), outcome (why)
-- Returns 'ok' | 'fenced'
local id = ARGV[1]
local key = job_key(id)
local job = redis.call('HMGET', key, 'status', 'fence')
if job[1] ~= 'processing' or job[2] ~= ARGV[2] then return fenced() end
if ARGV[4] ~= '1' then redis.call('HINCRBY', key, 'attempt', -1) end
local now = now_ms()
requeue_job(id, ARGV[5], now, now + ARGV[3])
return 'ok'
