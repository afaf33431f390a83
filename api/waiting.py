"""Answers that are held: by `Prefer: wait=N` (RFC 7240) until the job ends, by a stream while it goes on."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from maskfleet.jobs.ledger.jobs import Ledger

#: The ledger is asked soon at first, then less and less often: a short job is noticed at once, a long one costs little.
FIRST_LOOK_S, LAST_LOOK_S, LOOK_GROWTH = 0.02, 0.5, 1.3


class Waits:
    """Holds answers back, a limited number of them at a time."""

    def __init__(self, ledger: Ledger, slots: int) -> None:
        """slots: how many may be held at once; each one holds a thread, and some must stay free for the others."""
        self._ledger = ledger
        self._slots = threading.BoundedSemaphore(slots)
        self._stopping: Callable[[], bool] = lambda: False

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Let go of everyone as soon as ``stopping`` is true, so that the process can end."""
        self._stopping = stopping

    def stopping(self) -> bool:
        """Say whether whoever is held must be let go."""
        return self._stopping()

    def take_slot(self) -> bool:
        """Take a place for an answer that is held; False when there is none.  It must be given back."""
        return self._slots.acquire(blocking=False)

    def give_slot_back(self) -> None:
        self._slots.release()

    def until_ended(self, job_id: str, seconds: float) -> bool:
        """Wait for a job's end, for so long at most; False when there was no place to wait."""

        def ended() -> bool:
            status = self._ledger.status(job_id)
            return status is None or status.ended

        return self.until(ended, seconds)

    def until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so, for so long at most; False when there was no place to wait."""
        if not self.take_slot():
            return False
        try:
            deadline, pause = time.monotonic() + seconds, FIRST_LOOK_S
            while not self.stopping():
                so, left = is_so(), deadline - time.monotonic()
                if so or left <= 0:
                    break
                time.sleep(min(pause, left))
                pause = min(pause * LOOK_GROWTH, LAST_LOOK_S)
        finally:
            self.give_slot_back()
        return True


def preferred_wait_s(prefer: str | None) -> int | None:
    """Read the seconds of ``wait=N``; None when it is not asked for, or not understood, as the RFC wants it."""
    found = re.search(r'(?:^|[,;])\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=$|[,;])', prefer or "", re.IGNORECASE)
    return int(found[1]) if found else None
