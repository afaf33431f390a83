"""Hold a job: a thread renews its lease, reports progress, and learns when to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from structlog.contextvars import bound_contextvars

from maskfleet.jobs.errors import AttemptFailed, JobError, QueueUnavailable
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outages import OutageLog
from maskfleet.jobs.ledger.outcomes import Reply
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.record import JobRecord, ProgressView
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.status import Stage

logger = get_logger()


class Stopped(Exception):
    """The attempt must end now, with nothing more written."""


class Canceled(Stopped):
    """The caller canceled the job."""


class Drained(Stopped):
    """The worker is shutting down; the job goes back to the queue."""


class Fenced(Stopped):
    """The job no longer belongs to this worker."""


class LeaseRanOut(Stopped):
    """The lease was not renewed for so long that another worker may have the job; nobody has told."""


def kill_this_process() -> None:
    """Kill this child process at once, even in a native call that hangs; Celery starts another one."""
    os.kill(os.getpid(), signal.SIGKILL)


class Lease:
    """A context manager that holds a claimed job.

    It is also the watch that `segment` reports to: each report passes on the progress and raises if the attempt
    must end, so a running job stops within one batch of points.  An attempt that does not stop within
    ``stop_grace_s`` is killed with its process.
    """

    def __init__(
        self,
        ledger: Ledger,
        record: JobRecord,
        settings: WorkerSettings,
        end_process: Callable[[], None] = kill_this_process,
    ) -> None:
        self._ledger = ledger
        self._record = record
        self._settings = settings
        self._end_process = end_process
        self._run_timeout_s = record.spec.run_timeout_s
        self._progress = ProgressView(stage=Stage.FETCHING)
        self._reply = Reply.OK
        self._started = self._kept_at = time.monotonic()
        self._stop_requested_at: float | None = None
        self._over = threading.Event()
        self._outage = OutageLog("beat")
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

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
        """Report that ``done`` of ``total`` batches of points are decoded, with ``masks`` masks so far."""
        self._progress = self._progress.model_copy(update={"done": done, "total": total, "masks": masks})
        self.check()

    def check(self) -> None:
        """Raise if the attempt must end: Canceled, Drained, Fenced, LeaseRanOut, or AttemptFailed (``timeout``)."""
        reason = self._reason_to_stop()
        if reason is not None:
            raise reason

    def _reason_to_stop(self) -> Stopped | JobError | None:
        now = time.monotonic()
        if self._reply is Reply.FENCED:
            return Fenced()
        if now - self._kept_at > self._settings.lease_s:
            return LeaseRanOut()
        if self._reply is Reply.CANCELED:
            return Canceled()
        if now - self._started > self._run_timeout_s:
            return AttemptFailed("timeout", f"The job ran longer than its run_timeout_s of {self._run_timeout_s} s.")
        if self._reply is Reply.DRAINED:
            return Drained()
        return None

    def _keep(self) -> None:
        with bound_contextvars(**self._record.log_ids):  # a new thread does not inherit them
            while not self._over.wait(self._settings.beat_s):
                try:
                    self._beat()
                    self._end_if_unheeded()
                except Exception as error:  # noqa: BLE001  without this thread a hung attempt would hang for ever
                    self._outage.broke(error)

    def _beat(self) -> None:
        if self._reply is Reply.FENCED:
            return
        sent_at = time.monotonic()
        try:
            self._reply = self._ledger.beat(self._record, self._progress, lease_s=self._settings.lease_s)
        except QueueUnavailable as error:
            self._outage.note(error)
            return
        self._outage.over()
        if self._reply is not Reply.FENCED:
            self._kept_at = sent_at

    def _end_if_unheeded(self) -> None:
        """Kill a process that hangs in an uninterruptible call, and record in the ledger how the job ended."""
        reason = self._reason_to_stop()
        if reason is None:
            return
        self._stop_requested_at = self._stop_requested_at or time.monotonic()
        if time.monotonic() - self._stop_requested_at < self._settings.stop_grace_s:
            return
        logger.error("attempt_hangs", reason=type(reason).__name__)
        try:
            match reason:
                case Canceled():
                    self._ledger.finish_canceled(self._record)
                case Drained():
                    self._ledger.release(self._record, delay_s=0, charged=False, outcome="drained")
                case JobError(code=code, detail=detail):
                    self._ledger.fail(self._record, code, detail)
        except Exception:  # whatever the reason, the process must end; the courier reaps its lease
            logger.warning("hung_attempt_not_recorded", exc_info=True)
        self._over.set()
        self._end_process()
