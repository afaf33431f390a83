"""What the ledger is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from jobs.spec import Webhook


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
class QueuePlace:
    """Where a queued job stands.  ahead: jobs before it in its queue; starts_in_s: a guess, None without a measure."""

    ahead: int
    starts_in_s: float | None


@dataclass(frozen=True, slots=True)
class BacklogLimit:
    """How long a job may have to wait.  workers: how many drain its queue, and before it those that are more urgent."""

    max_wait_s: float
    workers: int
    more_urgent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be recorded.  ``idempotency_key`` and ``body_digest`` are empty without the header."""

    tenant: str
    queue: str
    spec_json: str
    start_deadline_s: int
    webhook: Webhook | None = None
    idempotency_key: str = ""
    body_digest: str = ""


@dataclass(frozen=True, slots=True)
class Creation:
    """CREATE's answer.

    job_id: the new job, or the one that the idempotency key stands for; empty when none was recorded.
    wait_s: with BACKLOG_FULL, how long the job would wait.
    """

    outcome: Created
    job_id: str
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reaped:
    """How many jobs a REAP moved."""

    requeued: int
    failed: int
    canceled: int
    expired: int
