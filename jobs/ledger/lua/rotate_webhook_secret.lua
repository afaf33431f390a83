#!lua flags=allow-oom
-- Begin a new generation of a tenant's webhook secret; those before it sign until overlap_ms from now at most.
-- ARGV: tenant, generation (of this call: a second run finds what the first did), overlap_ms,
--       max_earlier (how many earlier ones may still sign)
-- Returns 'rotated' | 'too_many'
-- requires: keys
local key, generation, now = webhook_secrets_key(ARGV[1]), ARGV[2], now_ms()
local overlap_ms = tonumber(ARGV[3])
if redis.call('ZSCORE', key, generation) then return 'rotated' end
redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
if redis.call('EXISTS', key) == 0 then redis.call('ZADD', key, '+inf', 'first') end
if overlap_ms == 0 then
  redis.call('DEL', key)
elseif redis.call('ZCARD', key) > tonumber(ARGV[4]) then
  return 'too_many'
end
for _, earlier in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZADD', key, 'LT', now + overlap_ms, earlier) end
redis.call('ZADD', key, '+inf', generation)
return 'rotated'
