#!/bin/sh
# Start Redis with the users in users.acl.  Their passwords come from the environment; only their hashes are written.
set -eu
here=$(dirname "$0")

hash() {
    test "${#1}" -ge 16 || { echo "A Redis password is shorter than 16 characters." >&2; exit 1; }
    printf '%s' "$1" | sha256sum | cut -d ' ' -f 1
}

api=$(hash "$REDIS_PASSWORD_API")
worker=$(hash "$REDIS_PASSWORD_WORKER")
courier=$(hash "$REDIS_PASSWORD_COURIER")
operator=$(hash "$REDIS_PASSWORD_OPERATOR")
# Unquoted: two words.
server=${REDIS_SERVER:-docker-entrypoint.sh redis-server}
case $($server --version) in
    *" v=7.0."*) without='s/ +client|setinfo//; s/ +waitaof//' ;;  # new in 7.2; programs work without them, and 7.0 exits over the unknown names
    *) without= ;;
esac
users=$(mktemp)
# The hashes go to sed by its input: arguments can be read by every user of the machine.
sed -f /dev/stdin "$here/users.acl" > "$users" << END
$without
s/#<api>/#$api/
s/#<worker>/#$worker/
s/#<courier>/#$courier/
s/#<operator>/#$operator/
END
chmod 644 "$users"  # the image's entrypoint drops root before the server reads it
unset REDIS_PASSWORD_API REDIS_PASSWORD_WORKER REDIS_PASSWORD_COURIER REDIS_PASSWORD_OPERATOR
exec $server "$here/redis.conf" "$@" --aclfile "$users"
