#!lua flags=allow-oom
-- SERVING: count the workers that have a model loaded, and those of them that have withdrawn.
-- ARGV: ttl_s, model, …; without a model: all that any worker has loaded
-- Returns {model, workers that take jobs, workers that have withdrawn, …}
-- requires: keys
local since_s = math.floor(now_ms() / 1000) - ARGV[1]
local models = {unpack(ARGV, 2)}
if #models == 0 then models = redis.call('ZRANGEBYSCORE', MODELS, since_s, '+inf') end
local counts = {}
for _, model in ipairs(models) do
  table.insert(counts, model)
  table.insert(counts, redis.call('ZCOUNT', serving_key(model), since_s, '+inf'))
  table.insert(counts, redis.call('ZCOUNT', withdrawn_key(model), since_s, '+inf'))
end
return counts
