"""Whose turn it is to sweep the store: once in a while, and one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis
from redis.exceptions import LockError
from redis.lock import Lock

from maskfleet.jobs.errors import Conflict
from maskfleet.jobs.ledger.clock import ledger_now_ms
from maskfleet.jobs.ledger.connection import redis_errors

#: A sweep that died holds the others up for this long; above the longest wait for an answer of the store.
LOCK_S = 120.0


class SweepTurns:
    """The turns of all sweeps, and the clock that they go by.  Every method raises QueueUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def is_due(self, every_s: float) -> bool:
        """Return True if the caller should sweep: once per ``every_s`` among all couriers."""
        with redis_errors():
            return bool(self._redis.set("mf:swept", "1", nx=True, px=int(every_s * 1000)))

    @contextmanager
    def hold(self) -> Iterator[Callable[[], None]]:
        """Hold the one lock of all sweeps; yield the function that keeps it alive, to be called often.

        Raises Conflict (``sweep_under_way``) when another sweep has it, or took it over.
        """
        lock = Lock(self._redis, "mf:sweep", timeout=LOCK_S, blocking=False, thread_local=False)
        with redis_errors():
            if not lock.acquire():
                raise Conflict("sweep_under_way", "Another sweep is running. Wait until it has finished.")
        renewed = time.monotonic()

        def keep() -> None:
            nonlocal renewed
            if time.monotonic() - renewed > LOCK_S / 4:
                try:
                    with redis_errors():
                        lock.reacquire()
                except LockError as error:
                    detail = "Another sweep took over because this one was too slow."
                    raise Conflict("sweep_under_way", detail) from error
                renewed = time.monotonic()

        try:
            yield keep
        finally:
            # If another sweep holds the lock by now, it keeps it.
            with suppress(LockError), redis_errors():
                lock.release()

    def now_ms(self) -> float:
        """Return the ledger's time, by which jobs end."""
        with redis_errors():
            return float(ledger_now_ms(self._redis))
