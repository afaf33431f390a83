#!lua flags=allow-oom
-- RELEASE: hand a job back, to be claimed again once delay_ms have passed; one that is to be canceled ends instead.
-- ARGV: id, fence, token, delay_ms, charged ('1': the attempt counts), outcome (why), retention_ms
-- Returns 'ok' | 'canceled' (it has ended) | 'fenced'
-- requires: keys, jobs
local id = ARGV[1]
local job = redis.call('HMGET', job_key(id), 'status', 'fence', 'token')
if not is_held(job, ARGV[2], ARGV[3]) then return fenced() end
if ARGV[5] ~= '1' then redis.call('HINCRBY', job_key(id), 'attempt', -1) end
local now = now_ms()
return hand_back(id, ARGV[6], now, now + ARGV[4], ARGV[7]) and 'ok' or 'canceled'
