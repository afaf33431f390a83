#!lua flags=allow-oom
-- EPOCH: prove that Redis accepts writes, and tell whether this is the ledger that the caller knows.
-- Redis rejects the whole script, for its flags, whenever it rejects writes; only when it is merely full it does not.
-- ARGV: the id of the ledger that the caller knows ('' for none), a new id
-- Returns {id, since when another ledger is missed, in ms ('0': none is), now in ms}
-- requires: keys
local known, id = ARGV[1], redis.call('HGET', EPOCH, 'id')
if not id then
  id = ARGV[2]
  redis.call('HSET', EPOCH, 'id', id)
end
local now = now_ms()
if known ~= '' and known ~= id and redis.call('HGET', EPOCH, 'missed') ~= known then
  redis.call('HSET', EPOCH, 'missed', known, 'missed_ms', now)
end
return {id, redis.call('HGET', EPOCH, 'missed_ms') or '0', tostring(now)}
