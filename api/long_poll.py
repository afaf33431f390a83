"""Held responses: long polls (`Prefer: wait=N`, RFC 7240) until the job ends, and streams while they last."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from maskfleet.jobs.ledger.jobs import Ledger

#: The ledger is polled often at first, then less and less: a short job is noticed at once, a long one costs little.
FIRST_LOOK_S, LAST_LOOK_S, LOOK_GROWTH = 0.02, 0.5, 1.3


class Waits:
    """Holds responses open, a limited number at a time."""

    def __init__(self, ledger: Ledger, slots: int) -> None:
        """slots: how many may be held at once; each occupies a thread, and some must stay free for other requests."""
        self._ledger = ledger
        self._slots = threading.BoundedSemaphore(slots)
        self._stopping: Callable[[], bool] = lambda: False

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Release all held responses as soon as ``stopping`` returns true, so that the process can end."""
        self._stopping = stopping

    def stopping(self) -> bool:
        """Return whether held responses must be released."""
        return self._stopping()

    def take_slot(self) -> bool:
        """Take a slot for a held response; return False when none is free.  The slot must be given back."""
        return self._slots.acquire(blocking=False)

    def give_slot_back(self) -> None:
        self._slots.release()

    def until_ended(self, job_id: str, seconds: float) -> bool:
        """Wait for a job to end, for at most ``seconds``; return False when no slot was free."""

        def ended() -> bool:
            status = self._ledger.status(job_id)
            return status is None or status.ended

        return self.until(ended, seconds)

    def until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``is_so`` returns true, for at most ``seconds``; return False when no slot was free."""
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
    """Return the seconds of ``wait=N``; None when absent or not understood, which the RFC says to ignore."""
    found = re.search(r'(?:^|[,;])\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=$|[,;])', prefer or "", re.IGNORECASE)
    return int(found[1]) if found else None
