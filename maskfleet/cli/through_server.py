"""Photographs done by a server: each sent as a job, awaited, and its result fetched."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

from maskfleet import Client, Job
from maskfleet.cli.many import Did, Task
from maskfleet.cli.photos import NamedPhoto
from maskfleet.cli.server import say
from maskfleet.cli.terminal import demo_note, tell
from maskfleet.client.errors import ApiError, NotFound
from maskfleet.data import DEMO_MODEL
from maskfleet.jobs.schema.record import JobView, Spec

#: Codes of a server that takes no more at the moment, but will; and the wait after which it is asked again.
_LATER = frozenset({"too_many_jobs_in_flight", "rate_limited", "backlog_full"})
_LATER_S = 10.0
#: A server that is down is said so by all threads; one of their sentences in this time is enough.
QUIET_S = 5.0


class PhotoFailed(ApiError):
    """The job of a photograph ended without a result."""


class ServerWork:
    """Does one photograph after the other through a server; several threads may share it.

    make_client: called once in each thread, for a client is for one thread alone.
    """

    def __init__(self, make_client: Callable[[], Client], spec: Spec) -> None:
        self._make_client = make_client
        self._spec = spec
        self._own = threading.local()

    def do(self, task: Task) -> Did:
        """Send the photograph unless an earlier run has, wait for its job, and fetch the result.

        Raises ApiError, OSError.
        """
        client = self.client()
        job = self._earlier_job(client, task) or self._send(client, task)
        job = client.wait(job.id)
        if job.result is None:
            raise PhotoFailed(job.error.code if job.error else str(job.status), _why(job))
        client.fetch(job.id, task.folder)
        return Did(job.result.masks, job.result.best_score, job.id)

    def client(self) -> Client:
        """Return this thread's client."""
        if not hasattr(self._own, "client"):
            self._own.client = self._make_client()
        client: Client = self._own.client
        return client

    def _earlier_job(self, client: Client, task: Task) -> JobView | None:
        """Return the job that an earlier run sent and did not see end."""
        earlier = task.earlier
        if earlier is None or earlier.status != "sent" or earlier.job_id is None:
            return None
        try:
            return client.get(earlier.job_id)
        except NotFound:
            return None  # deleted, or expired

    def _send(self, client: Client, task: Task) -> JobView:
        key = task.key
        while True:
            try:
                job = submit(client, self._spec, task.photo, key)
            except ApiError as error:
                if error.code in _LATER:
                    time.sleep(_LATER_S)
                    continue
                if error.code != "idempotency_key_reused":
                    raise
                key = str(uuid.uuid4())  # an earlier run uploaded the photograph anew, which makes it another request
                continue
            task.sent(job.id)
            return job


def submit(client: Client, spec: Spec, photo: NamedPhoto, idempotency_key: str | None = None) -> Job:
    """Send a job for a photograph.  Raises ApiError, OSError."""
    return client.submit(spec, photo=photo.source, idempotency_key=idempotency_key)


def note_demo(job: JobView) -> None:
    """Say on stderr if the job's model is the bundled demo model."""
    _note(job.model)


def note_model(client: Client, model: str | None) -> None:
    """Say on stderr if jobs of this model, or of the default one, use the bundled demo model.  Raises ApiError."""
    _note(model or client.models()[0])


def _note(model: str) -> None:
    if model == DEMO_MODEL.name:
        tell(demo_note("start the server with another, such as `maskfleet up --model facebook/sam-vit-base`"), err=True)


def _why(job: JobView) -> str:
    return job.error.detail if job.error else f"The job {job.id} was {job.status}."


class Seldom:
    """Says one of the sentences that several threads have to say at about the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said_at = float("-inf")

    def say(self, message: str) -> None:
        with self._lock:
            if time.monotonic() - self._said_at > QUIET_S:
                self._said_at = time.monotonic()
                say(message)
