"""The spec of a batch: the request body of ``POST /v1/batches``, validated.  Many images, one job for each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import (
    MAX_BATCH_IMAGES,
    Boxes,
    BoxJob,
    EventName,
    Everything,
    EverythingJob,
    ImageSource,
    MaskOptions,
    PointJob,
    Points,
    Webhook,
    invalid_request,
)
from maskfleet.jobs.schema.wire import HttpUrl, Request


class BatchEventName(StrEnum):
    """The events of a batch: that all its jobs have ended, and the events of each job."""

    COMPLETED = "completed"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


class BatchWebhook(Request):
    """Where to send the batch's webhooks (Standard Webhooks)."""

    url: HttpUrl
    events: tuple[BatchEventName, ...] = Field(
        (BatchEventName.COMPLETED,),
        min_length=1,
        description="The events to send: `completed`, when the last job has ended; the others, once for each job. "
        "Default: `completed` alone.",
    )

    @property
    def of_jobs(self) -> Webhook | None:
        """The webhook of each job; None without job events."""
        events = tuple(EventName(name) for name in self.events if name is not BatchEventName.COMPLETED)
        return Webhook(url=self.url, events=events) if events else None

    @property
    def completed_url(self) -> str:
        """Where ``batch.completed`` is sent; empty for nowhere."""
        return self.url if BatchEventName.COMPLETED in self.events else ""


class _ManyImages(Request):
    images: tuple[ImageSource, ...] = Field(
        min_length=1, max_length=MAX_BATCH_IMAGES, description="One job is created for each, in this order."
    )


class _BatchFields(MaskOptions, _ManyImages):
    webhook: BatchWebhook | None = None


class EverythingBatch(Everything, _BatchFields):
    """Segment everything in each image."""


class PointBatch(Points, _BatchFields):
    """Segment the objects at the same points in each image."""


class BoxBatch(Boxes, _BatchFields):
    """Segment the objects inside the same boxes in each image."""


Batch = EverythingBatch | PointBatch | BoxBatch
BatchSpec = Annotated[Batch, Field(discriminator="mode")]
_ADAPTER: TypeAdapter[Batch] = TypeAdapter(BatchSpec)
_JOBS: dict[str, type[Spec]] = {"everything": EverythingJob, "point": PointJob, "box": BoxJob}


def parse_batch(text: bytes) -> Batch:
    """Read a batch from JSON as ``parse_spec`` reads a job.  Raises InvalidRequest as that does."""
    try:
        return _ADAPTER.validate_json(text, strict=True)
    except ValidationError as error:
        raise invalid_request(error) from error


def job_of(batch: Batch, image: ImageSource) -> Spec:
    """Return the job of one image; everything in it was validated with the batch."""
    kind = _JOBS[batch.mode]
    shared = {name: getattr(batch, name) for name in kind.model_fields if name not in ("image", "inline", "webhook")}
    webhook = batch.webhook.of_jobs if batch.webhook else None
    return kind.model_construct(image=image, webhook=webhook, **shared)
