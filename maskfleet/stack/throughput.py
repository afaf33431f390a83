"""How many jobs a minute some workers do, of one kind that is sent again and again: their queue is never empty."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store

TENANT = "throughput"
#: Jobs that are queued or running for each worker.
DEPTH = 3
#: How often the queue is filled again.
LOOK_S = 0.1


class JobsFailed(RuntimeError):
    """A job did not succeed, or none ended in time; the message says why."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Jobs that ended between two moments, by Redis' clock.  run_s: the median from a job's claim to its end."""

    jobs: int
    began_ms: int
    ended_ms: int
    run_s: float

    @property
    def per_minute(self) -> float:
        return self.jobs * 60_000 / (self.ended_ms - self.began_ms)


class JobStream:
    """Jobs of mode everything on one photo, so many at a time.

    Each has an image of its own, a copy with another comment: workers may keep what they have computed of an image.
    """

    def __init__(self, settings: SharedSettings, photo: bytes) -> None:
        """photo: a JPEG."""
        client = connect(settings)
        self._ledger = Ledger(client, settings.retention_s)
        self._bells = Bells(client, Publisher(settings))
        self._queue = queue_name(settings.model_name, Priority.NORMAL)
        self._store = Store(settings)
        self._photo = photo
        self._open: list[str] = []
        self.ended: list[JobRecord] = []

    def warm_up(self, workers: int, check: Callable[[], None], *, deadline_s: float) -> None:
        """Send jobs until each worker has done one.  check: called often; it may raise.

        Raises JobsFailed, also after deadline_s.
        """
        deadline = time.monotonic() + deadline_s
        while len({record.worker for record in self.ended}) < workers:
            self._look(workers, check, deadline)

    def measure(
        self, workers: int, check: Callable[[], None], *, least_s: float, least_jobs: int, deadline_s: float
    ) -> Throughput:
        """Send jobs and count those that end from now on, for least_s and until there are least_jobs.

        The workers are warm: the time begins with the end of the job before.  Raises as ``warm_up``.
        """
        deadline = time.monotonic() + deadline_s
        warmed_up, began_ms = len(self.ended), self.ended[-1].ended_ms or 0
        while True:
            self._look(workers, check, deadline)
            counted = self.ended[warmed_up:]
            ended_ms = max((record.ended_ms or 0 for record in counted), default=0)
            if len(counted) >= least_jobs and ended_ms - began_ms >= least_s * 1000:
                run_s = statistics.median(((one.ended_ms or 0) - (one.claimed_ms or 0)) / 1000 for one in counted)
                return Throughput(len(counted), began_ms, ended_ms, run_s)

    def cancel(self) -> None:
        """Cancel the jobs that have not ended."""
        for job_id in self._open:
            self._ledger.cancel(job_id, TENANT)
        self._open = []

    def _look(self, workers: int, check: Callable[[], None], deadline: float) -> None:
        check()
        if time.monotonic() > deadline:
            raise JobsFailed(f"Only {len(self.ended)} jobs ended in time.")
        for job_id, status in zip(self._open, self._ledger.statuses(self._open), strict=True):
            if status is not None and status.ended:
                record = self._ledger.read(job_id)
                if record is None or status is not Status.SUCCEEDED:
                    why = f": {record.error.code}, {record.error.detail}" if record and record.error else ""
                    raise JobsFailed(f"A job {status}{why}")
                self.ended.append(record)
        done = {record.id for record in self.ended}
        self._open = [job_id for job_id in self._open if job_id not in done]
        self.ended.sort(key=lambda record: record.ended_ms or 0)
        missing = DEPTH * workers - len(self._open)
        if missing > 0:
            self._open += [self._send() for _ in range(missing)]
            self._bells.ring(self._queue, missing)
        time.sleep(LOOK_S)

    def _send(self) -> str:
        upload_id = self._store.put_upload(TENANT, _with_comment(self._photo, uuid.uuid4().hex), "image/jpeg")
        spec = json.dumps({"mode": "everything", "image": {"upload_id": upload_id}})
        job = NewJobs(tenant=TENANT, queue=self._queue, specs_json=(spec,), start_deadline_s=86_400)
        return self._ledger.create(job, max_in_flight=1000, idempotency_ttl_s=60).id


def _with_comment(jpeg: bytes, text: str) -> bytes:
    """Return a JPEG with a comment after its first marker.  Source: ITU-T T.81, B.2.4.5."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
