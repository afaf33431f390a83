"""The arguments and outcomes of the ledger's operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.schema.spec import ImageSource, Webhook
from maskfleet.jobs.status import Status


class Created(StrEnum):
    """The outcome of CREATE: OVER_STORAGE, RESERVED when it only asks; MOVED for a step of a batch that was taken."""

    CREATED = "created"
    KNOWN = "known"
    KEY_REUSED = "key_reused"
    OVER_QUOTA = "over_quota"
    OVER_BYTES = "over_bytes"
    BACKLOG_FULL = "backlog_full"
    OVER_STORAGE = "over_storage"
    RESERVED = "reserved"
    TOO_MANY_BATCHES = "too_many_batches"
    MOVED = "moved"


class Reply(StrEnum):
    """The ledger's reply to a worker."""

    OK = "ok"
    CANCELED = "canceled"
    DRAINED = "drained"
    FENCED = "fenced"


class Cancel(StrEnum):
    """The outcome of CANCEL."""

    CANCELED = "canceled"
    REQUESTED = "requested"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Retried(StrEnum):
    """The outcome of RETRY."""

    QUEUED = "queued"
    NOT_FAILED = "not_failed"
    OVER_QUOTA = "over_quota"
    UNKNOWN = "unknown"
    OF_BATCH = "of_batch"


class Deleted(StrEnum):
    """The outcome of DELETE."""

    BEGUN = "begun"
    DELETED = "deleted"
    NOT_ENDED = "not_ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class BacklogLimit:
    """The limit on a job's expected wait.  workers: how many drain its queue, after the more urgent ones."""

    max_wait_s: float
    workers: int
    more_urgent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch, apart from its jobs.  completed_url: where ``batch.completed`` is sent; empty for nowhere.

    source, plan: of one without jobs, which couriers expand, as JSON; empty for any other.  most_open: of these, of one
    tenant.
    """

    completed_url: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    plan: str = ""
    most_open: int = 0

    @property
    def expanded(self) -> dict[str, object]:
        """What CREATE needs of one that couriers expand."""
        return {"source": self.source, "plan": self.plan, "most_open": self.most_open}


@dataclass(frozen=True, slots=True)
class BatchStep:
    """A step of a batch's expansion.  cursor: where the batch must be; next: where it is afterwards.

    numbers: of the jobs.  listed: how many images were found so far.  rejected: JSON of each that became no job.
    ends: whether nothing follows.  error_code, error_detail: why, if that is not the source's end.
    """

    batch: str
    cursor: str
    next: str
    numbers: tuple[int, ...]
    listed: int
    rejected: tuple[str, ...] = ()
    ends: bool = False
    error_code: str = ""
    error_detail: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that jobs came with: its ``X-Request-Id``, and its place in a trace as W3C's ``traceparent``.

    Empty where unknown.
    """

    request_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class NewJobs:
    """Jobs to be recorded in one step: one, or those of a batch.

    specs_json: one for each.  webhook: for each of them.  ``idempotency_key`` and ``body_digest`` are empty without
    the header.  bucket: the service's own, as the program that records them has it; empty if it has none.  images: the
    name of each one's image (``ImageSource.name``), empty for none; or nothing, if no image has one.  origin: of all.
    sources: each one's image, for people to see; or nothing.  step: of the batch that they belong to, if
    couriers expand it.
    """

    tenant: str
    queue: str
    specs_json: tuple[str, ...]
    start_deadline_s: int
    webhook: Webhook | None = None
    idempotency_key: str = ""
    body_digest: str = ""
    batch: NewBatch | None = None
    bucket: str = ""
    images: tuple[str, ...] = ()
    origin: Origin = Origin()
    sources: tuple[ImageSource, ...] = ()
    step: BatchStep | None = None


@dataclass(frozen=True, slots=True)
class NodeCall:
    """Asks CREATE for the node that has the job's image in memory, if it has nothing else to do.

    model: that it must serve.  wait_ms: for how long no other node is called; meanwhile it is named for no other job.
    """

    model: str
    wait_ms: int


@dataclass(frozen=True, slots=True)
class NewImages:
    """Images that are to be stored for a tenant.  size: of all of them, in bytes.

    max_size: the most that the tenant may have stored in the last ``window_s``, these included.
    """

    size: int
    max_size: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Creation:
    """The result of CREATE.

    id: of the batch or the one job that was recorded, now or before under the idempotency key; otherwise empty.
    job_ids: of the jobs recorded now.  wait_s: for BACKLOG_FULL, how long the last job would wait; for OVER_BYTES, how
    long until the next records expire, 0 for not before one of the tenant's jobs ends.
    node: the one to call to the job recorded now; empty for any node.
    """

    outcome: Created
    id: str = ""
    job_ids: tuple[str, ...] = ()
    wait_s: float = 0.0
    node: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is reserved for jobs while their images are stored.

    name: for CREATE; empty if no places were reserved.  hour: in which the images' size counts, since the epoch.
    """

    name: str
    tenant: str
    size: int
    hour: str


@dataclass(frozen=True, slots=True)
class JobEnd:
    """Whose a job is, its state, and when it ended, by Redis' clock; None for not yet."""

    tenant: str
    status: Status
    ended_ms: int | None


#: A place in a tenant's list of jobs: created_ms and id of the job before it.
Place = tuple[int, str]


@dataclass(frozen=True, slots=True)
class JobsPage:
    """Some of a tenant's jobs, newest first, and where the next page begins; None at the end of the list."""

    records: tuple[JobRecord, ...]
    next: Place | None


@dataclass(frozen=True, slots=True)
class Claim:
    """The outcome of CLAIM.

    record: of the job; None when there was none to claim.  more_in: the most urgent queue where jobs can still be
    claimed, and ``more`` how many; empty and 0 when nothing was claimed.
    """

    record: JobRecord | None
    more_in: str = ""
    more: int = 0


@dataclass(frozen=True, slots=True)
class Reaped:
    """How many jobs REAP moved to each state."""

    requeued: int
    failed: int
    canceled: int
    expired: int

    @property
    def leases(self) -> int:
        """How many leases had run out."""
        return self.requeued + self.failed + self.canceled
