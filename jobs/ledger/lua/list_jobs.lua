#!lua flags=allow-oom
-- LIST: a page of a tenant's jobs, newest first.  Ids whose record has expired are removed as they are met.
-- ARGV: tenant, the place after which the page begins: created_ms ('' for the newest), id; status ('' for any), limit,
--       looks (the most ids to look at), field, … (of the records; the first must be id)
-- Returns {created_ms, id (the place after which the next page begins; '' for none), {value, …}, …}
-- requires: keys
local tenant, before_ms, before_id, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local limit, looks = tonumber(ARGV[5]), tonumber(ARGV[6])
local fields = {unpack(ARGV, 7)}
local log = jobs_key(tenant)
-- Ids that are read at once.
local STEP = 100

-- The rank at which the page begins, from the newest.
local function first_rank()
  if before_ms == '' then return 0 end
  local rank = redis.call('ZREVRANK', log, before_id)
  if rank then return rank + 1 end
  -- It has been removed.  All jobs of a batch have the same millisecond; then the order is that of their ids.
  rank = redis.call('ZCOUNT', log, '(' .. before_ms, '+inf')
  while true do
    local place = redis.call('ZREVRANGE', log, rank, rank, 'WITHSCORES')
    if not place[1] or tonumber(place[2]) < tonumber(before_ms) or place[1] < before_id then return rank end
    rank = rank + 1
  end
end

local found, dead = {}, {}
local place_ms, place_id = '', ''

-- Look at ids from a rank on; return whether there is another job for the next page, or may be.
local function look(rank)
  while looks > 0 do
    local places = redis.call('ZREVRANGE', log, rank, rank + math.min(STEP, looks) - 1, 'WITHSCORES')
    if #places == 0 then return false end
    for i = 1, #places, 2 do
      local id = places[i]
      local its_status = redis.call('HGET', job_key(id), 'status')
      if its_status and (status == '' or its_status == status) then
        if #found == limit then return true end
        table.insert(found, redis.call('HMGET', job_key(id), unpack(fields)))
      end
      if not its_status then table.insert(dead, id) end
      place_ms, place_id = places[i + 1], id
    end
    looks, rank = looks - #places / 2, rank + #places / 2
  end
  return redis.call('ZCARD', log) > rank
end

local more = look(first_rank())
for i = 1, #dead, STEP do redis.call('ZREM', log, unpack(dead, i, math.min(i + STEP - 1, #dead))) end
return {more and place_ms or '', more and place_id or '', unpack(found)}
