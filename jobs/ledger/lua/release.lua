#!lua flags=allow-oom
-- RELEASE: hand a job back, to be claimed again once delay_ms have passed; one that is to be canceled ends instead.
-- ARGV: id, fence, token, delay_ms, charged ('1': the attempt counts), outcome (why), retention_ms,
--       avoid_ms (for so long after the delay, its worker is not given it again; 0 for not at all)
-- Returns 'ok' | 'canceled' (it has ended) | 'fenced'
-- requires: keys, jobs
local id = ARGV[1]
local job = read_job(id)
if not is_held(job, ARGV[2], ARGV[3]) then return fenced() end
if ARGV[5] ~= '1' then redis.call('HINCRBY', job_key(id), 'attempt', -1) end
local now = now_ms()
local due, avoid_ms = now + ARGV[4], tonumber(ARGV[8] or 0)
if avoid_ms > 0 then
  redis.call('HSET', job_key(id), 'avoid', string.format('%.0f %s', due + avoid_ms, job.worker or ''))
end
return hand_back(id, job, ARGV[6], now, due, ARGV[7]) and 'ok' or 'canceled'
