-- Take the webhooks that are due.  Each is due again after a lease, in case that its courier dies.
-- ARGV: limit, lease_ms
-- Returns {delivery, job, event, url, tries, now_s, …}
local now = now_ms()
local due = {}
for _, delivery in ipairs(redis.call('ZRANGEBYSCORE', 'mf:deliveries', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local key = 'mf:delivery:' .. delivery
  local fields = redis.call('HMGET', key, 'job', 'event', 'url')
  if fields[1] then
    redis.call('ZADD', 'mf:deliveries', now + ARGV[2], delivery)
    local tries = redis.call('HINCRBY', key, 'tries', 1)
    for _, value in ipairs({delivery, fields[1], fields[2], fields[3], tostring(tries), tostring(math.floor(now / 1000))}) do table.insert(due, value) end
  else
    redis.call('ZREM', 'mf:deliveries', delivery)
  end
end
return due
