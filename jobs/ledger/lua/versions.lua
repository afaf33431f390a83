#!lua flags=allow-oom
-- VERSIONS: the versions of jobs' records; one command, however many follow jobs.
-- ARGV: job id, …
-- Returns {version ('' for a job without a record), …}
-- requires: keys
local versions = {}
for i, id in ipairs(ARGV) do
  versions[i] = redis.call('HGET', job_key(id), 'version') or ''
end
return versions
