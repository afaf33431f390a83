"""The spec of a batch: the request body of ``POST /v1/batches``, validated.  Many images, one job for each."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

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
from maskfleet.jobs.schema.wire import BUCKET, HttpUrl, Request, S3Uri, Wire, key_fault


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


#: The fields of a source that name it.
_KINDS = ("prefix", "manifest")
#: What a line of a manifest may say, besides its image, instead of the batch.
LINE_FIELDS = frozenset(
    {"image", "mode", "prompts", "params", "outputs", "overlay_format", "metadata", "run_timeout_s"}
)


def _is_s3_place(uri: str) -> str:
    found = re.fullmatch(rf"s3://{BUCKET}/?([^\x00-\x1f]*)", uri)
    fault = key_fault(found[1].removesuffix("/")) if found and found[1] else ""
    if not found or fault:
        raise PydanticCustomError(
            "invalid_s3_uri", "{fault}Write it as s3://bucket/folder/.", {"fault": fault and f"{fault} "}
        )
    return uri if uri.count("/") > 2 else f"{uri}/"


def _one_of(first: str, first_type: str, second: str, second_type: str) -> dict[str, JsonValue]:
    """Describe to JSON Schema that one of two fields is given; null is as good as nothing."""
    there: list[JsonValue] = [
        {"required": [name], "properties": {name: {"type": kind}}}
        for name, kind in ((first, first_type), (second, second_type))
    ]
    return {"anyOf": there, "not": {"allOf": there}}


class BatchSource(Request):
    """Where a batch's images come from: all objects under a prefix, or the lines of a manifest."""

    model_config = ConfigDict(json_schema_extra=_one_of("prefix", "string", "manifest", "string"))

    prefix: Annotated[str, StringConstraints(max_length=1200), AfterValidator(_is_s3_place)] | None = Field(
        None,
        description="What the URIs of the images begin with, in a bucket that the operator allows; usually a folder.",
        examples=["s3://photos/tiles/"],
    )
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f]+$")] = Field(
        "*",
        description="Which objects under the prefix: their names, after the last slash, with `*`, `?` and `[…]`; upper "
        "and lower case differ.",
        examples=["*.jpg"],
    )
    manifest: S3Uri | None = Field(
        None,
        description="A text object in such a bucket with one JSON object a line: `image`, as in a job, and if they "
        "differ from the batch's, `mode`, `prompts`, `params`, `outputs`, `overlay_format`, `metadata` and "
        "`run_timeout_s`.",
        examples=["s3://photos/tiles.jsonl"],
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len([kind for kind in _KINDS if getattr(self, kind) is not None]) != 1:
            raise PydanticCustomError("batch_source", "Give either prefix or manifest.")
        if self.manifest is not None and self.pattern != "*":
            raise PydanticCustomError("batch_source", "A pattern is for a prefix; a manifest names each image itself.")
        return self


class _ManyImages(Request):
    model_config = ConfigDict(json_schema_extra=_one_of("source", "object", "images", "array"))

    images: tuple[ImageSource, ...] = Field(
        default_factory=tuple,  # not a default in the schema, which it would not satisfy
        min_length=1,
        max_length=MAX_BATCH_IMAGES,
        description="One job is created for each, in this order. Or give a `source`.",
    )
    source: BatchSource | None = Field(
        None,
        description="Where to find the images, however many. Jobs are created little by little, as earlier ones end.",
    )

    @model_validator(mode="after")
    def _has_images(self) -> Self:
        if bool(self.images) == (self.source is not None):
            raise PydanticCustomError("batch_images", "Give either images, at least one, or a source.")
        return self


class _BatchFields(MaskOptions, _ManyImages):
    webhook: BatchWebhook | None = None


class EverythingBatch(Everything, _BatchFields):
    """Segment everything in each image."""


class PointBatch(Points, _BatchFields):
    """Segment the objects at the same points in each image."""


class BoxBatch(Boxes, _BatchFields):
    """Segment the objects inside the same boxes in each image."""


class BatchPlan(Wire):
    """What couriers need to expand a batch, as its record has it.

    spec: of each job, with a placeholder for its image.  etag, size: of the manifest.  max_in_flight, max_bytes: the
    tenant's limits.  coco, geojson: whether these results are merged.
    """

    source: BatchSource
    spec: str
    queue: str
    bucket: str
    start_deadline_s: int
    max_in_flight: int
    max_bytes: int
    coco: bool
    geojson: bool = False
    etag: str = ""
    size: int = 0


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
