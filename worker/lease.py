"""Holding a job: a thread beats its lease, takes progress up, and brings back the word to stop."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from jobs.errors import AttemptFailed, QueueUnavailable
from jobs.ledger import Ledger, Reply
from jobs.logs import get_logger
from jobs.record import JobRecord, ProgressView
from jobs.settings import WorkerSettings
from jobs.status import Stage

log = get_logger()


class Stopped(Exception):
    """The attempt must end now, with nothing written; ``Canceled`` and ``Fenced`` say why."""


class Canceled(Stopped):
    """The caller canceled the job."""


class Fenced(Stopped):
    """The job is no longer this worker's: the lease ran out, or may have."""


class Lease:
    """A context that keeps a claimed job.

    It is also what `segment` reports to: each report takes the progress along and raises when the attempt
    must end, so a running job stops within one batch of points.
    """

    def __init__(self, ledger: Ledger, record: JobRecord, settings: WorkerSettings) -> None:
        self._ledger = ledger
        self._record = record
        self._settings = settings
        self._progress = ProgressView(stage=Stage.FETCHING)
        self._verdict = Reply.OK
        self._started = self._kept_at = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_over, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def stage(self, stage: Stage) -> None:
        """Report that the job entered a stage."""
        self._progress = self._progress.model_copy(update={"stage": stage})
        self.check()

    def batch(self, done: int, total: int, masks: int) -> None:
        """Report that ``done`` of ``total`` batches of points are decoded and gave ``masks`` masks."""
        self._progress = self._progress.model_copy(update={"done": done, "total": total, "masks": masks})
        self.check()

    def check(self) -> None:
        """Raise when the attempt must end: Canceled, Fenced, or AttemptFailed (``timeout``)."""
        if self._verdict is Reply.CANCELED:
            raise Canceled
        if self._verdict is Reply.FENCED or time.monotonic() - self._kept_at > self._settings.lease_s:
            raise Fenced
        limit = self._record.spec.run_timeout_s
        if time.monotonic() - self._started > limit:
            raise AttemptFailed("timeout", f"The job ran for longer than its run_timeout_s of {limit}.")

    def _beat_until_over(self) -> None:
        while not self._over.wait(self._settings.beat_s):
            sent_at = time.monotonic()
            try:
                self._verdict = self._ledger.beat(self._record, self._progress, lease_s=self._settings.lease_s)
            except QueueUnavailable:
                log.warning("lease_not_beaten", job=self._record.id)
                continue
            if self._verdict is not Reply.OK:
                return
            self._kept_at = sent_at
