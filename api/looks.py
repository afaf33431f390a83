"""Questions about single jobs, asked together: thousands of held responses would otherwise each ask the ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from maskfleet.jobs.errors import JobError, QueueUnavailable

Answer = TypeVar("Answer")


class _Round(Generic[Answer]):
    """Those who ask together.  The first one asks for all."""

    def __init__(self) -> None:
        self.job_ids: dict[str, None] = {}
        self.answered = threading.Event()
        self.answers: dict[str, Answer] = {}
        self.error: Exception | None = None


class Looks(Generic[Answer]):
    """Answers one question about jobs."""

    def __init__(self, ask: Callable[[Sequence[str]], list[Answer]], gather_s: Callable[[], float]) -> None:
        """ask: returns an answer for each job.  gather_s: returns for how long others may join in."""
        self._ask, self._gather_s = ask, gather_s
        self._lock = threading.Lock()
        self._round: _Round[Answer] | None = None

    def of(self, job_id: str) -> Answer:
        """Return the answer for one job.  Raises QueueUnavailable."""
        with self._lock:
            leads = self._round is None
            own = self._round = self._round or _Round()
            own.job_ids[job_id] = None
        if leads:
            self._lead(own)
        else:
            own.answered.wait()
        if own.error is not None:
            raise own.error
        return own.answers[job_id]

    def _lead(self, own: _Round[Answer]) -> None:
        try:
            gather_s = self._gather_s()
            if gather_s:
                time.sleep(gather_s)
            with self._lock:
                self._round = None
            job_ids = list(own.job_ids)
            own.answers = dict(zip(job_ids, self._ask(job_ids), strict=True))
        except JobError as error:
            own.error = error
        finally:
            if not own.answers and own.error is None:  # killed before it had asked
                own.error = QueueUnavailable()
                with self._lock:
                    self._round = None if self._round is own else self._round
            own.answered.set()
