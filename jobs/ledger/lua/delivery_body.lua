#!lua flags=allow-oom
-- Store a webhook's body, so that every attempt sends the same bytes.
-- ARGV: id, body, retention_ms
-- Returns the stored body, '' when the webhook is unknown.
-- requires: keys, webhooks
local key = delivery_key(ARGV[1])
if redis.call('EXISTS', key) == 0 then return '' end
redis.call('HSETNX', key, 'body', ARGV[2])
let_record_go(ARGV[1], redis.call('HGET', key, 'subject'), now_ms(), ARGV[3])
return redis.call('HGET', key, 'body')
