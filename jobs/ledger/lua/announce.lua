#!lua flags=allow-oom
-- ANNOUNCE: record that a worker is ready, or has withdrawn, and what it serves.
-- ARGV: node, host, model, ttl_s, consumed_s_ago, device, pid, jobs, fault (why it has withdrawn; '' if it has not)
-- requires: keys
local node, model, ttl_s = ARGV[1], ARGV[3], tonumber(ARGV[4])
local now_s = math.floor(now_ms() / 1000)
redis.call('HSET', worker_key(node), 'model', model, 'device', ARGV[6], 'pid', ARGV[7], 'jobs', ARGV[8], 'consumed', now_s - ARGV[5], 'fault', ARGV[9])
redis.call('EXPIRE', worker_key(node), ttl_s)
redis.call('ZADD', WORKERS, now_s, node)
local counted, other = serving_key(model), withdrawn_key(model)
if ARGV[9] ~= '' then counted, other = other, counted end
redis.call('ZREM', other, node)
-- Each is counted by who was seen last: what names it, or who serves it, is forgotten as the next one announces itself.
for key, member in pairs({[MODELS] = model, [counted] = node, [host_key(ARGV[2])] = node}) do
  redis.call('ZADD', key, now_s, member)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. now_s - ttl_s)
  redis.call('EXPIRE', key, ttl_s)
end
return 'ok'
