"""A batch as the ledger records it, with the number of its jobs in each state, and as callers see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pydantic import Field

from maskfleet.jobs.errors import RecordUnreadable
from maskfleet.jobs.open_enum import OpenEnum
from maskfleet.jobs.schema.wire import Wire, utc_time
from maskfleet.jobs.status import ENDED, Status


class BatchStatus(OpenEnum):
    """The state of a batch.  Retrying a job of a completed batch returns it to ``processing``."""

    PROCESSING = "processing"
    COMPLETED = "completed"


class BatchEnds(Wire):
    """How many jobs of a batch ended in each state."""

    succeeded: int
    failed: int
    canceled: int
    expired: int


class _Open(Wire):
    queued: int
    processing: int


class BatchCounts(BatchEnds, _Open):
    """How many jobs of a batch are in each state."""


class BatchUrls(Wire):
    """Ready-made URLs for the next requests."""

    self: str
    deliveries: str


class BatchView(Wire):
    """A batch as the API shows it."""

    id: str
    status: BatchStatus = Field(description="`completed` when every job has ended, successfully or not.")
    created_at: datetime
    ended_at: datetime | None = Field(None, description="When the last job ended.")
    total: int = Field(description="Jobs, one for each image. Jobs deleted later still count.")
    done: int = Field(description="Jobs that have ended, successfully or not.")
    counts: BatchCounts
    metadata: dict[str, str] = Field(default_factory=dict)
    job_ids: tuple[str, ...] = Field(description="In the order of the images. Each is a job like any other.")
    request_id: str | None = Field(
        None,
        exclude_if=lambda request_id: request_id is None,
        description="The `X-Request-Id` of the request that created it, and all of its jobs.",
    )
    urls: BatchUrls


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as the ledger holds it.  Times are Redis' clock, in milliseconds since the epoch.

    ends: how often it was completed; retrying a job afterwards makes it complete once more.
    """

    id: str
    tenant: str
    created_ms: int
    ended_ms: int | None
    ends: int
    counts: BatchCounts
    metadata: dict[str, str]
    #: As in a job's record.
    request_id: str = ""
    traceparent: str = ""

    @classmethod
    def from_fields(cls, batch_id: str, fields: Mapping[str, str]) -> Self:
        """Read the record's Redis hash.  Raises RecordUnreadable."""
        try:
            return cls._from_fields(batch_id, fields)
        except (KeyError, ValueError) as error:
            raise RecordUnreadable("batch") from error

    @classmethod
    def _from_fields(cls, batch_id: str, fields: Mapping[str, str]) -> Self:
        return cls(
            id=batch_id,
            tenant=fields["tenant"],
            created_ms=int(fields["created_ms"]),
            ended_ms=int(fields["ended_ms"]) if "ended_ms" in fields else None,
            ends=int(fields["ends"]),
            counts=BatchCounts(**{status: int(fields[status]) for status in Status}),
            metadata=json.loads(fields["metadata"]),
            request_id=fields.get("request_id", ""),
            traceparent=fields.get("traceparent", ""),
        )

    @property
    def total(self) -> int:
        return sum(getattr(self.counts, status) for status in Status)

    @property
    def done(self) -> int:
        return sum(getattr(self.counts, status) for status in ENDED)

    @property
    def completion_id(self) -> str:
        """The id of the webhook about its latest completion."""
        return f"msg_{self.id}_{self.ends}_completed"

    def urls(self, base_url: str) -> BatchUrls:
        """Return its URLs.  base_url: the API's URL, without a trailing slash."""
        url = f"{base_url}/v1/batches/{self.id}"
        return BatchUrls(self=url, deliveries=f"{url}/deliveries")

    def view(self, base_url: str, job_ids: tuple[str, ...]) -> BatchView:
        """Return the view for its owner.  base_url: the API's URL, without a trailing slash."""
        return BatchView(
            id=self.id,
            status=BatchStatus.PROCESSING if self.ended_ms is None else BatchStatus.COMPLETED,
            created_at=utc_time(self.created_ms),
            ended_at=utc_time(self.ended_ms) if self.ended_ms is not None else None,
            total=self.total,
            done=self.done,
            counts=self.counts,
            metadata=self.metadata,
            job_ids=job_ids,
            request_id=self.request_id or None,
            urls=self.urls(base_url),
        )
