-- DELETE: forget an ended job.  Its objects are removed before, so that nothing is left without a name.
-- ARGV: id, tenant
-- Returns 'deleted' | 'not_ended' | 'unknown'
local id, tenant = ARGV[1], ARGV[2]
local job = redis.call('HMGET', job_key(id), 'status', 'tenant')
if not job[1] or job[2] ~= tenant then return 'unknown' end
if not is_ended(job[1]) then return 'not_ended' end
redis.call('DEL', job_key(id), attempts_key(id))
redis.call('ZREM', 'mf:jobs:' .. tenant, id)
return 'deleted'
