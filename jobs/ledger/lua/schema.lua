-- SCHEMA: return the version of the ledger's schema in Redis; an empty ledger is given this program's.
-- ARGV: the version that this program writes
-- Returns the ledger's version; '0' for a ledger from before there were versions
-- It has no flag, so a full Redis rejects its write, which happens only for an empty ledger.
-- requires: keys
local found = redis.call('GET', SCHEMA)
if found then return found end
if redis.call('HEXISTS', TOTALS, 'created') == 1 then return '0' end
redis.call('SET', SCHEMA, ARGV[1])
return ARGV[1]
