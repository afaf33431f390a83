"""What a webhook says: that a job has ended, and how.  Thin on purpose; masks are never in it."""

from __future__ import annotations

from datetime import UTC, datetime

from jobs.record import Failure, JobRecord, JobUrls, Metrics
from jobs.spec import EventName, Wire


class EventData(Wire):
    """The job's end in short."""

    id: str
    status: EventName
    mode: str
    model: str
    attempt: int
    queue_s: float | None
    run_s: float | None
    masks: int | None
    best_score: float | None
    metrics: Metrics | None
    error: Failure | None
    metadata: dict[str, str]
    urls: JobUrls


class Event(Wire):
    """The body of a webhook, as the Standard Webhooks specification lays it out: type, timestamp, data."""

    type: str
    timestamp: datetime
    data: EventData


def job_ended(record: JobRecord, model: str, base_url: str) -> Event:
    """Make the event of a job's end.  It depends on the record alone, so every try sends the same bytes."""
    view = record.view(model, base_url)
    return Event(
        type=f"job.{record.status}",
        timestamp=datetime.fromtimestamp((record.ended_ms or record.created_ms) / 1000, UTC),
        data=EventData(
            id=view.id,
            status=EventName(record.status),
            mode=view.mode,
            model=view.model,
            attempt=view.attempt,
            queue_s=view.queue_s,
            run_s=view.run_s,
            masks=view.result.masks if view.result else None,
            best_score=view.result.best_score if view.result else None,
            metrics=view.result.metrics if view.result else None,
            error=view.error,
            metadata=view.metadata,
            urls=view.urls,
        ),
    )
