"""A primary and its replica, and the failover from one to the other: at one address, or as Sentinels report it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from maskfleet.stack.servers import LOOPBACK, Server, free_port, redis_binary, start_redis
from maskfleet.worker.node.supervisor import start_child, stop_child
from tests.conftest import ports_in_turn
from tests.waiting import wait_until


@dataclass(frozen=True)
class Pair:
    """Two servers.  primary, replica: as they began."""

    primary: Server
    replica: Server

    def client(self, server: Server) -> redis.Redis:
        return redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5)

    def is_in_sync(self) -> bool:
        with self.client(self.primary) as primary, self.client(self.replica) as replica:
            offset = primary.info("replication")["master_repl_offset"]
            told = replica.info("replication")
            return told["master_link_status"] == "up" and told.get("slave_repl_offset", -1) >= offset

    @contextmanager
    def replica_frozen(self) -> Iterator[None]:
        """Let nothing reach the replica."""
        os.kill(self.replica.pid, 19)
        try:
            yield
        finally:
            os.kill(self.replica.pid, 18)

    def fail_over(self) -> None:
        """Promote the replica, and make the old primary its replica."""
        with self.client(self.primary) as primary, self.client(self.replica) as replica:
            replica.replicaof("NO", "ONE")
            primary.replicaof(LOOPBACK, str(self.replica.port))


@contextmanager
def started_pair(folder: Path) -> Iterator[Pair]:
    """Start both; the replica is in sync."""
    with ExitStack() as exits:
        with ports_in_turn():
            primary = start_redis(folder / "one", log=folder / "one.log", options={"repl-diskless-sync-delay": 0})
            exits.callback(primary.stop)
            replica = start_redis(folder / "two", log=folder / "two.log", options={"repl-diskless-sync-delay": 0})
            exits.callback(replica.stop)
        pair = Pair(primary, replica)
        with pair.client(replica) as client:
            client.replicaof(LOOPBACK, str(primary.port))
        wait_until(pair.is_in_sync, 30)
        yield pair


@contextmanager
def started_sentinel(folder: Path, pair: Pair) -> Iterator[int]:
    """Start a Sentinel that watches the pair under the name ``ledger``; give its port."""
    port = free_port()
    file = folder / "sentinel.conf"
    file.write_text(
        f"port {port}\nbind {LOOPBACK}\nsentinel monitor ledger {LOOPBACK} {pair.primary.port} 1\n"
        "sentinel down-after-milliseconds ledger 1000\nsentinel failover-timeout ledger 3000\n"
    )
    process: subprocess.Popen[bytes] = start_child(
        (str(redis_binary()), str(file), "--sentinel"), env=os.environ, log=folder / "sentinel.log"
    )
    try:
        with redis.Redis(port=port, decode_responses=True, socket_timeout=5) as client:
            wait_until(lambda: _knows_the_replica(client), 30)
        yield port
    finally:
        stop_child(process, grace_s=5)


def _knows_the_replica(client: redis.Redis) -> bool:
    try:
        return len(client.sentinel_slaves("ledger")) == 1  # type: ignore[no-untyped-call]  # redis-py's
    except (redis.ConnectionError, redis.ResponseError):
        return False
