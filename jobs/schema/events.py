"""The bodies of webhooks: a job has started or ended, a batch has completed, or a ping.

Small on purpose; they never contain masks.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import Field

from maskfleet.jobs.schema.batch import BatchEnds, BatchRecord, BatchStatus, BatchUrls
from maskfleet.jobs.schema.record import Failure, JobRecord, JobUrls, Metrics
from maskfleet.jobs.schema.spec import EventName
from maskfleet.jobs.schema.wire import Wire, utc_time
from maskfleet.jobs.status import Status

#: Standard Webhooks recommends bodies below this, in bytes.
MAX_BODY_BYTES = 20_000
#: Characters of an error's detail in a webhook; the job's record has all of it.
_MAX_DETAIL = 1000


class EventData(Wire):
    """A summary of the job."""

    id: str
    status: Status
    mode: str
    model: str
    source: str | None = Field(None, description="The image, as in the job.")
    file_name: str | None = Field(None, description="The image's name in results.")
    attempt: int
    queue_s: float | None
    run_s: float | None
    masks: int | None
    best_score: float | None
    metrics: Metrics | None
    error: Failure | None
    request_id: str | None = Field(
        None,
        exclude_if=lambda request_id: request_id is None,
        description="The `X-Request-Id` of the request that created the job.",
    )
    metadata: dict[str, str] | None = Field(description="Null if it would make the body too long.")
    urls: JobUrls = Field(description="Where to get the rest; ``result`` returns the manifest.")


class Event(Wire):
    """The body of a webhook, as Standard Webhooks specifies it: type, timestamp, data."""

    type: str
    timestamp: datetime
    data: EventData


class BatchData(Wire):
    """A summary of the batch."""

    id: str
    status: Literal[BatchStatus.COMPLETED] = BatchStatus.COMPLETED
    total: int
    counts: BatchEnds
    request_id: str | None = Field(
        None,
        exclude_if=lambda request_id: request_id is None,
        description="The `X-Request-Id` of the request that created the batch.",
    )
    metadata: dict[str, str] | None = Field(description="Null if it would make the body too long.")
    urls: BatchUrls = Field(description="Where to get the rest; ``self`` lists the jobs.")


class BatchEvent(Wire):
    """The body of the webhook of a batch whose jobs have all ended."""

    type: Literal["batch.completed"] = "batch.completed"
    timestamp: datetime
    data: BatchData


class PingData(Wire):
    """The data of a ping."""

    url: str


class Ping(Wire):
    """The body of a test webhook, sent on request to check that the receiver listens."""

    type: Literal["webhook.ping"] = "webhook.ping"
    timestamp: datetime
    data: PingData


class UnknownEvent(Wire):
    """A webhook's body that a newer version of the service sent, as far as this version understands it."""

    type: str
    timestamp: datetime
    data: dict[str, Any]  # Any: JSON


AnyEvent = TypeVar("AnyEvent", Event, BatchEvent)


def is_true(event: str, record: JobRecord) -> bool:
    """Return whether an event is still true of the job, which may have ended or been retried since."""
    return not record.status.ended if event == EventName.STARTED else str(record.status) == event


def job_event(event: str, record: JobRecord, model: str, base_url: str) -> Event:
    """Make the event of a job's start or end.

    model: the name of the model when the spec names none.  base_url: the API's URL, without a trailing slash.
    """
    started = event == EventName.STARTED
    view = record.view(model, base_url)
    time_ms = record.started_ms if started else record.ended_ms
    body = Event(
        type=f"job.{event}",
        timestamp=utc_time(time_ms or record.created_ms),
        data=EventData(
            id=view.id,
            status=Status.PROCESSING if started else view.status,
            mode=view.mode,
            model=view.model,
            source=view.source,
            file_name=view.file_name,
            attempt=view.attempt,
            queue_s=view.queue_s,
            run_s=view.run_s,
            masks=view.result.masks if view.result else None,
            best_score=view.result.best_score if view.result else None,
            metrics=view.result.metrics if view.result else None,
            error=_clipped(view.error),
            request_id=view.request_id,
            metadata=view.metadata,
            urls=view.urls,
        ),
    )
    return _thin(body)


def batch_event(record: BatchRecord, base_url: str) -> BatchEvent:
    """Make the event of a batch's completion.  base_url: the API's URL, without a trailing slash."""
    counts = record.counts
    body = BatchEvent(
        timestamp=utc_time(record.ended_ms or record.created_ms),
        data=BatchData(
            id=record.id,
            total=record.total,
            counts=BatchEnds(
                succeeded=counts.succeeded, failed=counts.failed, canceled=counts.canceled, expired=counts.expired
            ),
            request_id=record.request_id or None,
            metadata=record.metadata,
            urls=record.urls(base_url),
        ),
    )
    return _thin(body)


def _thin(body: AnyEvent) -> AnyEvent:
    if len(body.model_dump_json().encode()) < MAX_BODY_BYTES:
        return body
    return body.model_copy(update={"data": body.data.model_copy(update={"metadata": None})})


def _clipped(error: Failure | None) -> Failure | None:
    return error and Failure(code=error.code, detail=error.detail[:_MAX_DETAIL])
