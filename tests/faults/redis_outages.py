"""States in which a running Redis does not serve: each a context manager that brings one about and ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.waiting import wait_until

#: From a server's URL and its data folder.
Outage = Callable[[str, Path], AbstractContextManager[None]]


def plain_client(url: str) -> redis.Redis:
    """Make a client that shows each answer as it is."""
    return redis.Redis.from_url(url, decode_responses=True, socket_timeout=10, retry=Retry(NoBackoff(), 0))


@contextmanager
def no_replicas(url: str, data: Path) -> Iterator[None]:
    """Demand a replica, of which there is none: NOREPLICAS."""
    with plain_client(url) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            yield
        finally:
            client.config_set("min-replicas-to-write", 0)


@contextmanager
def read_only(url: str, data: Path) -> Iterator[None]:
    """Make the server a replica, as a failover does to the old primary: READONLY."""
    with plain_client(url) as client:
        client.replicaof("127.0.0.1", "1")  # nothing listens there, so it keeps its data
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


@contextmanager
def disk_fails(url: str, data: Path) -> Iterator[None]:
    """Have it fail to save its data: MISCONF."""
    snapshot = data / "dump.rdb"
    snapshot.unlink(missing_ok=True)
    snapshot.mkdir()  # it cannot be replaced by a file, whoever the server runs as
    with plain_client(url) as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 30)
        try:
            yield
        finally:
            snapshot.rmdir()
            client.config_set("save", "")


@contextmanager
def busy(url: str, data: Path) -> Iterator[None]:
    """Run a script that does not end: BUSY."""
    with plain_client(url) as client:
        usual = client.config_get("busy-reply-threshold")["busy-reply-threshold"]
        client.config_set("busy-reply-threshold", 50)

        def run() -> None:
            with plain_client(url) as other, suppress(redis.RedisError):  # it ends when it is killed
                other.connection_pool.connection_kwargs["socket_timeout"] = None
                other.eval("while true do end", 0)

        running = threading.Thread(target=run, daemon=True)
        running.start()
        wait_until(lambda: _says(client, "BUSY"), 30)
        try:
            yield
        finally:
            client.script_kill()
            running.join()
            client.config_set("busy-reply-threshold", usual)


#: By the reason that the programs give.
OUTAGES: dict[str, Outage] = {
    "no_replicas": no_replicas,
    "read_only": read_only,
    "disk": disk_fails,
    "busy": busy,
}


def _says(client: redis.Redis, code: str) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return str(error).startswith(code)
    return False
