"""The states of a job, and the stages of a running one; the ledger's scripts are the transitions between states."""

from __future__ import annotations

from maskfleet.jobs.open_enum import OpenEnum


class Status(OpenEnum):
    """The state of a job.  The last four are terminal; only a retry leads out of one, ``failed``."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED})


class Stage(OpenEnum):
    """What a job in ``processing`` is doing."""

    FETCHING = "fetching"
    EMBEDDING = "embedding"
    DECODING = "decoding"
    WRITING = "writing"
