#!lua flags=allow-oom
-- FINISH: end a job, for the worker that holds it.
-- ARGV: id, fence, token, status, error_code, error_detail, result, retention_ms,
--       image_held_ms (for so long its worker is known to have the job's image in memory; 0 for not at all)
-- Returns 'ok' | 'fenced' (nothing changed: you no longer hold the job, or it has ended)
-- requires: keys, jobs
local id, status = ARGV[1], ARGV[4]
local job = read_job(id)
if job.status == status and job.fence == ARGV[2] and job.token == ARGV[3] then return 'ok' end  -- a repeated call
if not is_held(job, ARGV[2], ARGV[3]) then return fenced() end
end_job(id, job, status, now_ms(), ARGV[8], ARGV[5], ARGV[6], ARGV[7])
if job.image and tonumber(ARGV[9] or 0) > 0 then
  redis.call('SET', image_node_key(job.tenant, job.image), job.worker, 'PX', ARGV[9])
end
return 'ok'
