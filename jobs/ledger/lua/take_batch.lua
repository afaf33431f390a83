#!lua flags=allow-oom
-- TAKE_BATCH: give a courier the next batch that has work to be done, for as long as its lease.
-- ARGV: lease_ms
-- Returns its id, '' for none
-- requires: keys
local now = now_ms()
local id = redis.call('ZRANGE', BATCH_WORK, '-inf', now, 'BYSCORE', 'LIMIT', 0, 1)[1]
if not id then return '' end
if redis.call('EXISTS', batch_key(id)) == 0 then  -- its record has expired
  redis.call('ZREM', BATCH_WORK, id)
  return ''
end
redis.call('ZADD', BATCH_WORK, now + ARGV[1], id)
return id
