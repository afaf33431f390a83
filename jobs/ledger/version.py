"""The version of the data in Redis: checked before a program touches jobs, raised by ``maskfleet ledger upgrade``.

A program works only with the version that it was written for.  To change the meaning of a key or a field, raise SCHEMA,
add a migration from the previous version, and keep a ledger of that version for the test (tests/jobs/full_ledger.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import redis
from redis.exceptions import LockError
from redis.lock import Lock

from maskfleet.jobs.errors import Conflict, LedgerVersion, QueueUnavailable
from maskfleet.jobs.ledger.connection import connect, load_script, redis_errors
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.settings import SharedSettings

#: The version that this program reads and writes.
SCHEMA = 2
#: An upgrade that was killed blocks the next one for this long; longer than any step takes.
LOCK_S = 600.0
#: How many jobs a migration carries over in one transaction.
CARRIED_AT_ONCE = 500

logger = get_logger()


class Schema:
    """Checks, once, that a ledger has this program's version."""

    def __init__(self, client: redis.Redis) -> None:
        self._script = load_script(client, "schema")
        self._checked = False

    def check(self) -> None:
        """Raise LedgerVersion unless the ledger has this program's version; an empty Redis is given it."""
        if self._checked:
            return
        with redis_errors():
            found = int(self._script(args=[SCHEMA]))
        if found != SCHEMA:
            raise LedgerVersion(found, SCHEMA)
        self._checked = True


def check_at_start(settings: SharedSettings) -> None:
    """End this program unless the ledger has its version.  If Redis is down, Ledger itself checks later."""
    try:
        with connect(settings) as client:
            Schema(client).check()
    except LedgerVersion as error:
        raise SystemExit(str(error)) from error
    except QueueUnavailable:
        logger.warning("ledger_version_not_checked")


@dataclass(frozen=True, slots=True)
class Migration:
    """A step from the previous version to ``version``.

    run: changes the data.  After an interruption it runs again, so it must skip what is already done.
    """

    version: int
    summary: str
    run: Callable[[redis.Redis], None]


def _change_nothing(client: redis.Redis) -> None:
    """Do nothing: only the version is new."""


def _queue_in_turns(client: redis.Redis) -> None:
    """Carry waiting jobs from the outbox, where each of them was, to the new queues; then delete the outbox.

    Keys that may create jobs keep the right to create interactive ones, which they had.
    """
    while waiting := cast(
        "list[tuple[str, float]]", client.zrange("mf:outbox", 0, CARRIED_AT_ONCE - 1, withscores=True)
    ):
        pipeline = client.pipeline(transaction=False)
        for job_id, _ in waiting:
            pipeline.hmget(f"mf:job:{job_id}", "status", "queue", "tenant", "created_ms", "fence", "retry")
        jobs = pipeline.execute()
        for (job_id, _), (_, queue, *_) in zip(waiting, jobs, strict=True):
            pipeline.zscore(f"mf:queued:{queue}", job_id)  # to the microsecond
        carried = client.pipeline()
        for (job_id, due_ms), fields, place in zip(waiting, jobs, pipeline.execute(), strict=True):
            status, queue, tenant, created_ms, fence, retry = fields
            if status == "queued":
                if fence != "0" and retry is None:  # it was handed back
                    carried.zadd(f"mf:returned:{queue}", {job_id: due_ms})
                else:
                    carried.zadd(f"mf:waiting:{queue}:{tenant}", {job_id: place or created_ms})
                    carried.zadd(f"mf:turns:{queue}", {tenant: 0}, nx=True)
                carried.sadd("mf:queues", queue)
            carried.zrem("mf:outbox", job_id)
        carried.execute()
    for key_id in cast("list[str]", client.zrange("mf:keys", 0, -1)):
        scopes = cast("str | None", client.hget(f"mf:key:{key_id}", "scopes"))
        if scopes and "jobs:write" in scopes.split():
            client.hset(f"mf:key:{key_id}", "scopes", " ".join(sorted({*scopes.split(), "jobs:interactive"})))


def _know_tenants(client: redis.Redis) -> None:
    """Make the tenants and open batches known that the reconciler walks: of jobs that have not ended, and of API keys.

    Jobs that were recorded before are not counted in bytes, and keep their spec until they expire.
    """
    for key in (
        "mf:leases",
        "mf:deadlines",
        *(f"mf:queued:{queue}" for queue in cast("set[str]", client.smembers("mf:queues"))),
    ):
        for ids in _pages(client, key):
            pipeline = client.pipeline(transaction=False)
            for job_id in ids:
                pipeline.hmget(f"mf:job:{job_id}", "tenant", "batch", "created_ms")
            for tenant, batch, created_ms in pipeline.execute():
                if tenant is not None:
                    client.zadd("mf:tenants", {tenant: created_ms})
                if batch is not None:
                    client.zadd("mf:batches", {batch: created_ms})
    for key_id in cast("list[str]", client.zrange("mf:keys", 0, -1)):
        tenant, created_ms = cast("list[str | None]", client.hmget(f"mf:key:{key_id}", "tenant", "created_ms"))
        if tenant is not None and created_ms is not None:
            client.zadd("mf:tenants", {tenant: created_ms})


def _pages(client: redis.Redis, key: str) -> Iterator[list[str]]:
    """Yield the members of a sorted set, some at a time."""
    start = 0
    while ids := cast("list[str]", client.zrange(key, start, start + CARRIED_AT_ONCE - 1)):
        yield ids
        start += len(ids)


def _count_pace_with_totals(client: redis.Redis) -> None:
    """Carry the queues' paces to the totals, with which they are read and written."""
    paces = cast("dict[str, str]", client.hgetall("mf:pace"))
    if paces:
        carried = client.pipeline()
        carried.hset("mf:totals", mapping={f"pace:{queue}": pace for queue, pace in paces.items()})
        carried.delete("mf:pace")
        carried.execute()


def _to_version_2(client: redis.Redis) -> None:
    _queue_in_turns(client)
    _know_tenants(client)
    _count_pace_with_totals(client)


MIGRATIONS = (
    Migration(1, "records the ledger's version; changes nothing else", _change_nothing),
    Migration(2, "queues waiting jobs by tenant; lets keys that create jobs create interactive ones", _to_version_2),
)


def upgrade(client: redis.Redis, *, dry_run: bool = False) -> Iterator[Migration]:
    """Bring a ledger to this program's version, and yield each step once it is done; ``dry_run`` only yields them.

    Raises LedgerVersion for a newer ledger, Conflict (``upgrade_under_way``), QueueUnavailable.
    """
    with _turn(client, dry_run) as check_turn:
        version = _version(client)
        if version > SCHEMA:
            raise LedgerVersion(version, SCHEMA)
        for migration in MIGRATIONS:
            if migration.version <= version:
                continue
            if not dry_run:
                with redis_errors():
                    migration.run(client)
                    check_turn()
                    client.set("mf:schema", migration.version)
                logger.info("ledger_upgraded", version=migration.version)
            yield migration


def _version(client: redis.Redis) -> int:
    """Return the ledger's version; for an empty Redis, this program's."""
    with redis_errors():
        pipeline = client.pipeline()
        pipeline.get("mf:schema")
        pipeline.hexists("mf:totals", "created")
        version, is_used = pipeline.execute()
    if version is None:
        return 0 if is_used else SCHEMA
    return int(version)


@contextmanager
def _turn(client: redis.Redis, dry_run: bool) -> Iterator[Callable[[], None]]:
    """Hold the upgrade lock; yield a function that raises Conflict if the lock was lost."""
    if dry_run:
        yield lambda: None
        return
    conflict = Conflict("upgrade_under_way", "Another upgrade is running, or was killed. Try again in 10 minutes.")
    lock = Lock(client, "mf:upgrade", timeout=LOCK_S, blocking=False, thread_local=False)
    with redis_errors():
        if not lock.acquire():
            raise conflict

    def check_turn() -> None:
        if not lock.owned():
            raise conflict

    try:
        yield check_turn
    finally:
        with suppress(LockError), redis_errors():
            lock.release()
