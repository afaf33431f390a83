"""The ledger's clock: Redis' own, guarded by the couriers against steps and pauses (jobs/ledger/lua/tick.lua).

mf:clock holds two numbers of ms, with a space between: Redis' time when a courier last looked, and what the ledger
adds to Redis' time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.logs import get_logger

#: A smaller difference is no step: couriers tick each second, and a process may be held up for a while.
STEP_MS = 5_000
#: What workers get to renew their leases: several beats of theirs, and the time limits of a connection.
RESPITE_MS = 15_000
#: Both clocks are read within this time, or they cannot be compared; the first try may meet the end of an outage.
SLOW_S, TRIES = 1.0, 3
#: A look is read before it is written: so much earlier may it be.
LOST_MS = 100

logger = get_logger()


@dataclass(frozen=True, slots=True)
class _Look:
    """What Redis' clock (in ms) and this process' own (in s) showed at the same time."""

    redis_ms: int
    own_s: float


class Clock:
    """One courier's look at the clock."""

    def __init__(self, client: redis.Redis, *, step_ms: int = STEP_MS, respite_ms: int = RESPITE_MS) -> None:
        self._redis = client
        self._script = load_script(client, "tick")
        self._limits = step_ms, respite_ms
        self._last: _Look | None = None

    def look(self) -> None:
        """Take back a step of Redis' clock; after a pause, let workers renew their leases.  Call before each reap."""
        with redis_errors():
            look, last = self._compare(), self._last
            own = round(look.redis_ms - last.redis_ms - (look.own_s - last.own_s) * 1000) if last else ""
            _, *found = self._script(args=[own, last.redis_ms if last else 0, *self._limits])
        self._last = look
        step_ms, passed_ms, lost_ms = map(int, found)
        if step_ms:
            logger.error("redis_clock_stepped", step_s=step_ms / 1000)
        elif passed_ms > self._limits[0]:
            logger.warning("leases_extended", nobody_looked_s=passed_ms / 1000)
        if lost_ms > LOST_MS:
            logger.error("ledger_writes_lost", lost_s=lost_ms / 1000)

    def _compare(self) -> _Look:
        """Read both clocks at the same time.  Raises QueueUnavailable if Redis is too slow for that."""
        for _ in range(TRIES):
            asked_s = time.monotonic()
            seconds, microseconds = self._redis.time()
            if time.monotonic() - asked_s < SLOW_S:
                return _Look(seconds * 1000 + microseconds // 1000, asked_s)
        raise QueueUnavailable(said=f"TIME took longer than {SLOW_S:g} s, {TRIES} times")


def ledger_now_ms(client: redis.Redis) -> int:
    """Return the time by which the ledger goes; raises redis-py's own errors."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.get("mf:clock")
    (seconds, microseconds), clock = pipeline.execute()
    _, offset_ms = (clock or "0 0").split()
    return int(seconds * 1000 + microseconds // 1000 + int(offset_ms))
