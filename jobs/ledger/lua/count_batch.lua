#!lua flags=allow-oom
-- COUNT_BATCH: note how many images the source of a batch has, before all of them were found.
-- ARGV: batch, found
-- Returns 'ok'
-- requires: keys
local key = batch_key(ARGV[1])
if redis.call('HGET', key, 'expansion') == 'open' then redis.call('HSET', key, 'found', ARGV[2]) end
return 'ok'
