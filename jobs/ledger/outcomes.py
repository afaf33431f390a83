"""What the ledger is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from maskfleet.jobs.schema.spec import Webhook


class Created(StrEnum):
    """What CREATE came to."""

    CREATED = "created"
    KNOWN = "known"
    KEY_REUSED = "key_reused"
    OVER_QUOTA = "over_quota"
    BACKLOG_FULL = "backlog_full"


class Reply(StrEnum):
    """What the ledger tells a worker."""

    OK = "ok"
    CANCELED = "canceled"
    DRAINED = "drained"
    FENCED = "fenced"


class Cancel(StrEnum):
    """What CANCEL came to."""

    CANCELED = "canceled"
    REQUESTED = "requested"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Retried(StrEnum):
    """What RETRY came to."""

    QUEUED = "queued"
    NOT_FAILED = "not_failed"
    OVER_QUOTA = "over_quota"
    UNKNOWN = "unknown"


class Deleted(StrEnum):
    """What DELETE came to."""

    BEGUN = "begun"
    DELETED = "deleted"
    NOT_ENDED = "not_ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class BacklogLimit:
    """How long a job may have to wait.  workers: how many drain its queue, and before it those that are more urgent."""

    max_wait_s: float
    workers: int
    more_urgent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a batch is beside its jobs.  completed_url: where its end is told, empty for nowhere."""

    completed_url: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewJobs:
    """Jobs to be recorded in one step: one, or those of a batch.

    specs_json: one for each.  webhook: what is told of each.  ``idempotency_key`` and ``body_digest`` are empty without
    the header.
    """

    tenant: str
    queue: str
    specs_json: tuple[str, ...]
    start_deadline_s: int
    webhook: Webhook | None = None
    idempotency_key: str = ""
    body_digest: str = ""
    batch: NewBatch | None = None


@dataclass(frozen=True, slots=True)
class Creation:
    """CREATE's answer.

    id: of the batch, or of the one job, that was recorded or that the idempotency key stands for; else empty.
    job_ids: of those that were recorded.  wait_s: with BACKLOG_FULL, how long the last job would wait.
    """

    outcome: Created
    id: str = ""
    job_ids: tuple[str, ...] = ()
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reaped:
    """How many jobs a REAP moved."""

    requeued: int
    failed: int
    canceled: int
    expired: int
