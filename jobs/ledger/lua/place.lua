#!lua flags=allow-oom
-- PLACE: how many jobs are before a queued one, and what its start depends on.
-- ARGV: id, queue, tenant, weights (JSON: tenant → its share), more urgent queue, …
-- Returns {jobs before it in its queue, jobs in more urgent queues, ms until it is due, the queue's pace in ms ('' while
-- unknown)}; nothing when it is not queued
-- requires: keys, turns
local id, queue, tenant = ARGV[1], ARGV[2], ARGV[3]
local now = now_ms()
local ahead, due_in_ms = redis.call('ZRANK', returned_key(queue), id), 0
if ahead then
  due_in_ms = math.max(0, redis.call('ZSCORE', returned_key(queue), id) - now)
else
  local own = redis.call('ZRANK', waiting_key(queue, tenant), id)
  if not own then return {} end
  ahead = ahead_in_turn(queue, tenant, own, cjson.decode(ARGV[4]), now)
end
local urgent = 0
for i = 5, #ARGV do urgent = urgent + redis.call('ZCARD', queued_key(ARGV[i])) end
return {ahead, urgent, due_in_ms, redis.call('HGET', TOTALS, pace_field(queue)) or ''}
