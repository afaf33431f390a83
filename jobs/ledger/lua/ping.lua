-- Queue a test webhook, to check that its receiver listens; sent like one that is redelivered.
-- ARGV: id, tenant, url, body
-- It has no flag, so a full Redis rejects it: no new work is accepted then.
-- requires: keys, webhooks
local id, now = ARGV[1], now_ms()
if redis.call('EXISTS', delivery_key(id)) == 1 then return 'ok' end  -- a repeated call
queue_delivery(id, ARGV[2], '', 'ping', ARGV[3], now)
redis.call('HSET', delivery_key(id), 'body', ARGV[4])
rush_delivery(id, ARGV[2], ARGV[3], now)
return 'ok'
