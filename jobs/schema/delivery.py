"""A webhook delivery: its state, its attempts, and the view of both for its owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pydantic import Field

from maskfleet.jobs.errors import RecordUnreadable
from maskfleet.jobs.open_enum import OpenEnum
from maskfleet.jobs.schema.wire import Wire, utc_time


class DeliveryState(OpenEnum):
    """The state of a webhook.  Only a redelivery leads out of a state other than ``waiting``."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    #: The receiver responded 410, or its URL is not allowed.
    REFUSED = "refused"
    #: The last attempt of the schedule failed.
    GIVEN_UP = "given_up"
    #: It was not sent, because the receiver had responded 410 before.
    DISABLED = "disabled"
    #: Its event is no longer true: the job was retried, has ended, or its record has expired.
    DROPPED = "dropped"


#: Webhooks that did not arrive, but still could.
FAILED_STATES = (DeliveryState.REFUSED, DeliveryState.GIVEN_UP, DeliveryState.DISABLED)


class DeliveryAttemptOutcome(OpenEnum):
    """The outcome of a delivery attempt."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    FAILED = "failed"


class DeliveryAttempt(Wire):
    """One attempt to deliver a webhook."""

    number: int = Field(description="Counted from 1, across redeliveries.")
    at: datetime
    duration_s: float
    outcome: DeliveryAttemptOutcome
    status: int | None = Field(None, description="The HTTP status of the receiver's response.")
    error: str | None = Field(None, description="The name of the error that prevented a response.")
    detail: str | None = Field(None, description="What this means, in words.")
    answer: str = Field("", description="The first 1 kB of the response body.")
    headers: dict[str, str] | None = Field(None, description="The headers that were sent; for pings only.")

    @property
    def host_failed(self) -> bool:
        """Whether the host failed, rather than refusing just this webhook."""
        return self.status is None or self.status >= 500 or self.status == 429


class DeliveryView(Wire):
    """A webhook as the API shows it."""

    id: str = Field(description="The header `webhook-id`; the same in every attempt.")
    job_id: str | None
    batch_id: str | None = None
    type: str = Field(description="The event that it reports.", examples=["job.succeeded"])
    url: str
    state: DeliveryState
    detail: str | None = Field(None, description="Why it is in this state, in words.")
    created_at: datetime
    next_try_at: datetime | None = Field(
        None, description="The earliest time of the next attempt; null when it has ended."
    )
    ended_at: datetime | None = None
    tries: tuple[DeliveryAttempt, ...] = Field(description="The latest attempts, oldest first.")


def subject_ids(subject: str) -> dict[str, str]:
    """Return the id of a webhook's subject as a log field, ``job_id`` or ``batch_id``; empty for a ping."""
    kind, _, _ = subject.partition("_")
    return {f"{kind}_id": subject} if kind else {}


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A webhook as the ledger holds it.  Times are Redis' clock, in milliseconds since the epoch.

    subject: the job or batch that it is about; empty for a ping.
    body: the bytes that are signed and sent; empty before the first attempt.
    """

    id: str
    tenant: str
    subject: str
    event: str
    url: str
    state: DeliveryState
    detail: str
    created_ms: int
    next_try_ms: int | None
    ended_ms: int | None
    body: str
    tries: tuple[DeliveryAttempt, ...]

    @classmethod
    def from_fields(cls, delivery_id: str, fields: Mapping[str, str], tries: Sequence[str]) -> Self:
        """Read the record's Redis hash, and its list of attempts.  Raises RecordUnreadable."""
        try:
            return cls._from_fields(delivery_id, fields, tries)
        except (KeyError, ValueError) as error:
            raise RecordUnreadable("webhook") from error

    @classmethod
    def _from_fields(cls, delivery_id: str, fields: Mapping[str, str], tries: Sequence[str]) -> Self:
        return cls(
            id=delivery_id,
            tenant=fields["tenant"],
            subject=fields["subject"],
            event=fields["event"],
            url=fields["url"],
            state=DeliveryState(fields["state"]),
            detail=fields.get("detail", ""),
            created_ms=int(fields["created_ms"]),
            next_try_ms=int(fields["next_ms"]) if "next_ms" in fields else None,
            ended_ms=int(fields["ended_ms"]) if "ended_ms" in fields else None,
            body=fields.get("body", ""),
            tries=tuple(DeliveryAttempt.model_validate_json(one) for one in tries),
        )

    def view(self) -> DeliveryView:
        """Return the view for the webhook's owner."""
        kind, _, _ = self.subject.partition("_")
        return DeliveryView(
            id=self.id,
            job_id=self.subject if kind == "job" else None,
            batch_id=self.subject if kind == "batch" else None,
            type=f"{kind or 'webhook'}.{self.event}",
            url=self.url,
            state=self.state,
            detail=self.detail or None,
            created_at=utc_time(self.created_ms),
            next_try_at=utc_time(self.next_try_ms) if self.next_try_ms is not None else None,
            ended_at=utc_time(self.ended_ms) if self.ended_ms is not None else None,
            tries=self.tries,
        )
