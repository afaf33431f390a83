"""Whether Redis accepts writes, and still holds the ledger that this program knows.

A ledger has an id, which its first user makes.  A program that finds another one has lost the ledger: Redis came back
empty, or with other data.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass

import redis

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.logs import get_logger

#: An answer stands for this long, since anyone may ask.
REMEMBERED_S = 1.0
#: One asker waits for another's answer for this long at most; each of Redis' time limits is longer.
WAITS_S = 1.0
#: Health checks report a lost ledger for this long: several checks of any orchestrator, and then work goes on.
LOSS_TOLD_S = 60.0
#: The reason, beside those of outages.py.
LEDGER_LOST = "ledger_lost"

logger = get_logger()


@dataclass(frozen=True, slots=True)
class _Answer:
    until: float
    refusal: QueueUnavailable | None


class Epoch:
    """Asks Redis at most once a second, whoever asks; one for each process."""

    def __init__(self, client: redis.Redis) -> None:
        self._script = load_script(client, "epoch")
        self._known = ""
        self._lock = threading.Lock()
        self._answer = _Answer(0.0, None)

    def check(self) -> None:
        """Raise QueueUnavailable unless Redis accepts writes and holds the ledger that this process knows.

        One that has lost its ledger reports it for LOSS_TOLD_S, with the reason LEDGER_LOST, and logs it once.
        """
        if time.monotonic() >= self._answer.until:
            self._ask_once()
        if self._answer.refusal is not None:
            raise self._answer.refusal

    def note(self) -> None:
        """Log if the ledger is lost; raise QueueUnavailable when Redis does not accept writes, and for nothing else."""
        try:
            self.check()
        except QueueUnavailable as error:
            if error.reason != LEDGER_LOST:
                raise

    def _ask_once(self) -> None:
        """Ask Redis, or wait for the thread that does."""
        if not self._lock.acquire(timeout=WAITS_S):
            raise QueueUnavailable
        try:
            if time.monotonic() < self._answer.until:
                return
            refusal = None
            try:
                self._ask()
            except QueueUnavailable as error:
                refusal = error
            self._answer = _Answer(time.monotonic() + REMEMBERED_S, refusal)
        finally:
            self._lock.release()

    def _ask(self) -> None:
        with redis_errors():
            found, missed_ms, now_ms = self._script(args=[self._known, uuid.uuid4().hex])
        if self._known and found != self._known:
            logger.error("ledger_lost", was=self._known, found=found)
        self._known = found
        if missed_ms != "0" and int(now_ms) - int(missed_ms) < LOSS_TOLD_S * 1000:
            raise QueueUnavailable(
                "Redis lost the ledger: jobs and API keys that were in it are unknown.", reason=LEDGER_LOST
            )
