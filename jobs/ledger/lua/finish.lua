#!lua flags=allow-oom
-- FINISH: end a job, for the worker that holds it.
-- ARGV: id, fence, status, error_code, error_detail, result, retention_ms
-- Returns 'ok' | 'fenced' (nothing changed: you no longer hold the job, or it has ended)
-- requires: keys, jobs
local id = ARGV[1]
local job = redis.call('HMGET', job_key(id), 'status', 'fence')
if job[2] == ARGV[2] and job[1] == ARGV[3] then return 'ok' end  -- a repeated call
if not holds(id, ARGV[2]) then return fenced() end
end_job(id, ARGV[3], now_ms(), ARGV[7], ARGV[4], ARGV[5], ARGV[6])
return 'ok'
