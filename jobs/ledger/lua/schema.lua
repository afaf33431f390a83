-- SCHEMA: say which version of the ledger's schema Redis holds; an empty ledger becomes one of this program's.
-- ARGV: the version that this program writes
-- Returns the version that is there; '0' for a ledger from before there were versions
-- A full Redis refuses it only where it writes, for it has no flag: that is where nothing is there yet.
-- requires: keys
local found = redis.call('GET', SCHEMA)
if found then return found end
if redis.call('HEXISTS', TOTALS, 'created') == 1 then return '0' end
redis.call('SET', SCHEMA, ARGV[1])
return ARGV[1]
