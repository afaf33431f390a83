#!lua flags=allow-oom
-- Store a webhook's body, so that every attempt sends the same bytes.
-- ARGV: id, body, retention_ms
-- Returns the stored body, '' when the webhook is unknown.
-- requires: keys, webhooks
local key = delivery_key(ARGV[1])
local delivery = redis.call('HMGET', key, 'subject', 'body')
if not delivery[1] then return '' end
if not delivery[2] then redis.call('HSET', key, 'body', ARGV[2]) end
let_record_go(ARGV[1], delivery[1], now_ms(), ARGV[3])
return delivery[2] or ARGV[2]
