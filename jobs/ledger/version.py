"""The version of what Redis holds: checked before a program touches jobs, and raised by ``maskfleet ledger upgrade``.

A program works with the one version that it was written for.  Whoever changes the meaning of a key or a field raises
SCHEMA, adds a migration that brings a ledger of the version before to it, and keeps a ledger of that version for the
test (tests/jobs/full_ledger.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import redis
from redis.exceptions import LockError
from redis.lock import Lock

from maskfleet.jobs.errors import Conflict, LedgerVersion, QueueUnavailable
from maskfleet.jobs.ledger.connection import connect, load_script, redis_errors
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.settings import SharedSettings

#: What this program reads and writes.
SCHEMA = 1
#: An upgrade that was killed holds the next one up for this long; above the time that a step takes.
LOCK_S = 600.0

logger = get_logger()


class Schema:
    """Checks, once, that a ledger is of this program's version."""

    def __init__(self, client: redis.Redis) -> None:
        self._script = load_script(client, "schema")
        self._checked = False

    def check(self) -> None:
        """Raise LedgerVersion unless the ledger is of this program's version; an empty Redis becomes one."""
        if self._checked:
            return
        with redis_errors():
            found = int(self._script(args=[SCHEMA]))
        if found != SCHEMA:
            raise LedgerVersion(found, SCHEMA)
        self._checked = True


def check_at_start(settings: SharedSettings) -> None:
    """End this program unless the ledger is of its version.  A Redis that is away is asked later, by Ledger itself."""
    try:
        with connect(settings) as client:
            Schema(client).check()
    except LedgerVersion as error:
        raise SystemExit(str(error)) from error
    except QueueUnavailable:
        logger.warning("ledger_version_not_checked")


@dataclass(frozen=True, slots=True)
class Migration:
    """A step from the version before to ``version``.

    run: changes what there is.  It runs again where it broke off, so it must leave alone what is done already.
    """

    version: int
    summary: str
    run: Callable[[redis.Redis], None]


def _change_nothing(client: redis.Redis) -> None:
    """Only the version is new."""


MIGRATIONS = (Migration(1, "records the ledger's version; changes nothing else", _change_nothing),)


def upgrade(client: redis.Redis, *, dry_run: bool = False) -> Iterator[Migration]:
    """Bring a ledger to this program's version, and yield each step once it is done; ``dry_run`` only yields them.

    Raises LedgerVersion for a ledger that is newer, Conflict (``upgrade_under_way``), QueueUnavailable.
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
    """Return the version of what is there; of an empty Redis, this program's."""
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
    """Hold the lock of all upgrades; yield what raises Conflict once it is another's."""
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
