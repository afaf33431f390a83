-- Queue a webhook that tells of no job, to see whether its receiver listens; sent like one that is queued again.
-- ARGV: id, tenant, url, body
-- A full Redis refuses it, for it has no flag: nothing new is taken in then.
-- requires: keys, webhooks
local id, now = ARGV[1], now_ms()
if redis.call('EXISTS', delivery_key(id)) == 1 then return 'ok' end  -- the same call once more
queue_delivery(id, ARGV[2], '', 'ping', ARGV[3], now)
redis.call('HSET', delivery_key(id), 'body', ARGV[4])
rush_delivery(id, ARGV[2], ARGV[3], now)
return 'ok'
