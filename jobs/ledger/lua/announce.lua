#!lua flags=allow-oom
-- ANNOUNCE: record that a worker is there, what it serves, and whether it takes jobs.
-- ARGV: node, host, model, ttl_s, consumed_s_ago, device, pid, jobs, fault (why it has withdrawn; '' if it has not),
--       loads ('1' while it still loads its model), version (of the program),
--       start_s (how long its start took; '' before it is over),
--       also (what it serves besides its model, as it stands for a model's name; '' for nothing)
-- requires: keys
local node, model, ttl_s, fault = ARGV[1], ARGV[3], tonumber(ARGV[4]), ARGV[9]
local key, now = worker_key(node), now_ms()
local now_s = math.floor(now / 1000)

local state = 'ready'
if ARGV[10] == '1' then state = 'starting'
elseif redis.call('EXISTS', draining_key(node)) == 1 then state = 'draining'
elseif fault ~= '' then state = 'withdrawn' end
local counted = ({starting = starting_key, ready = serving_key, draining = draining_nodes_key, withdrawn = withdrawn_key})[state](model)

local was = redis.call('HMGET', key, 'state', 'since_ms')
if was[1] ~= state then
  for _, other in ipairs({starting_key(model), serving_key(model), draining_nodes_key(model), withdrawn_key(model)}) do
    if other ~= counted then redis.call('ZREM', other, node) end
  end
end
redis.call('HSET', key, 'model', model, 'device', ARGV[6], 'pid', ARGV[7], 'jobs', ARGV[8], 'consumed', now_s - ARGV[5],
  'fault', fault, 'state', state, 'since_ms', was[1] == state and was[2] or now, 'seen', now_s, 'version', ARGV[11],
  'start_s', ARGV[12])
redis.call('EXPIRE', key, ttl_s)
redis.call('ZADD', WORKERS, now_s, node)
local seen = {[MODELS] = model, [counted] = node, [host_key(ARGV[2])] = node}
if ARGV[13] ~= '' then
  if state == 'ready' then seen[serving_key(ARGV[13])] = node else redis.call('ZREM', serving_key(ARGV[13]), node) end
end
-- Each is counted by who was seen last: what names it, or who serves it, is forgotten as the next one announces itself.
for name, member in pairs(seen) do
  redis.call('ZADD', name, now_s, member)
  redis.call('ZREMRANGEBYSCORE', name, '-inf', '(' .. now_s - ttl_s)
  redis.call('EXPIRE', name, ttl_s)
end
return 'ok'
