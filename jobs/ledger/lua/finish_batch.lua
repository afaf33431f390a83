#!lua flags=allow-oom
-- FINISH_BATCH: complete a batch that was expanded, all of whose jobs have ended and were collected.
-- ARGV: batch, pages (that its files were made of), files (JSON), retention_ms
-- Returns 'ok' | 'moved' (there is more to be done, or nothing)
-- requires: keys, bytes, batches
local id, now = ARGV[1], now_ms()
local key = batch_key(id)
local batch = redis.call('HMGET', key, 'tenant', 'expansion', 'ended_ms', 'queued', 'processing', 'plan', 'bytes', 'held')
if not batch[1] or batch[2] == 'open' or batch[3] or batch[4] + batch[5] > 0 then return 'moved' end
if redis.call('EXISTS', batch_ended_key(id)) == 1 or redis.call('LLEN', batch_pages_key(id)) ~= tonumber(ARGV[2]) then return 'moved' end
local bytes = batch[7] - #batch[6] + #ARGV[3]
recount(batch[1], {batch[7], batch[8]}, bytes, batch[8])
redis.call('HSET', key, 'files', ARGV[3], 'plan', '', 'bytes', bytes)
redis.call('SREM', expanding_key(batch[1]), id)
redis.call('ZREM', BATCH_WORK, id)
complete_batch(id, now, ARGV[4])
redis.call('PEXPIRE', batch_pages_key(id), math.max(redis.call('PTTL', key), 1000))
return 'ok'
