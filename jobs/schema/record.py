"""A job as the ledger records it, and as callers see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar, Self, cast

from pydantic import ConfigDict, Field, ValidationError, model_validator

from maskfleet.jobs.errors import RecordUnreadable
from maskfleet.jobs.open_enum import OpenEnum
from maskfleet.jobs.schema.batch import BatchRecord
from maskfleet.jobs.schema.inline import InlineMasks, InlineOmitted
from maskfleet.jobs.schema.spec import (
    DEFAULT_START_DEADLINE_S,
    BoxJob,
    DerivedJob,
    EmbedJob,
    EverythingJob,
    ImageSource,
    Output,
    PointJob,
    Priority,
    file_name_of,
    read_spec,
    shown_url,
)
from maskfleet.jobs.schema.wire import RECORDED, Wire, utc_time
from maskfleet.jobs.status import Stage, Status

#: A job that makes masks.
Spec = EverythingJob | PointJob | BoxJob
#: A job that needs a model, and its image.
ModelSpec = Spec | EmbedJob
AnySpec = ModelSpec | DerivedJob


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """A queued job's place.  ahead: jobs before it in its queue; starts_in_s: an estimate, None when there is none."""

    ahead: int
    starts_in_s: float | None


class RecordedSource(Wire):
    """An image's source as the record keeps it, whatever a newer version adds."""

    model_config = ConfigDict(extra="ignore")

    s3_uri: str | None = None
    url: str | None = None
    upload_id: str | None = None
    sha256: str | None = None
    file_name: str | None = None


class SpecSummary(Wire):
    """What is shown of a spec, and used of it after the job's end, when the record has given up the spec itself.

    Readable as long as the spec is JSON, whatever else it asks for.
    """

    model_config = ConfigDict(extra="ignore")

    mode: str
    model: str | None = None
    priority: str = Priority.NORMAL
    outputs: tuple[str, ...] = (Output.COCO,)
    inline: str | None = None
    start_deadline_s: int = DEFAULT_START_DEADLINE_S
    metadata: dict[str, str] = Field(default_factory=dict)
    #: Of a job of mode ``export`` or ``refilter``.
    from_job: str | None = None
    #: Only of a job whose image others may name when it has ended: of mode ``embed``, or with logits, to be refined.
    image: RecordedSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _keep_what_may_be_named(cls, spec: Any) -> Any:  # Any: JSON
        if not isinstance(spec, dict) or not isinstance(spec.get("image"), dict):
            return {**spec, "image": None} if isinstance(spec, dict) else spec
        outputs = spec.get("outputs")
        named = spec.get("mode") == "embed" or (isinstance(outputs, list) and Output.LOGITS in outputs)
        source = {name: value for name, value in spec["image"].items() if isinstance(value, str)}
        return {**spec, "image": source if named else None}

    @property
    def source(self) -> ImageSource | None:
        """The image's source; None when it is not kept, or cannot be read by this version."""
        if self.image is None:
            return None
        try:
            return ImageSource.model_validate(self.image.model_dump(), context=RECORDED)
        except ValidationError:
            return None


class EmbeddingOrigin(OpenEnum):
    """Where the embedding of an image came from."""

    COMPUTED = "computed"
    MEMORY = "memory"
    STORE = "store"
    #: A job of mode ``export`` or ``refilter`` needs none.
    NONE = "none"


class Metrics(Wire):
    """How long each step of a job took, in seconds, and how much it processed."""

    fetch_s: float = 0.0
    embed_s: float = 0.0
    decode_s: float = 0.0
    write_s: float = 0.0
    points: int = Field(0, description="Prompts that were decoded.")
    points_per_batch: int = Field(
        0, description="Points that were decoded at once; fewer than requested if memory ran short."
    )
    decoded_again: int = Field(
        0, description="Prompts decoded again by the library's own decoder, because many pixels were borderline."
    )
    decoded_again_exactly: bool = Field(
        True,
        description="Whether they match the library's bit for bit; false on machines whose arithmetic prevents it.",
    )
    embedding: EmbeddingOrigin = Field(
        EmbeddingOrigin.COMPUTED,
        description="Where the image's embedding came from: computed by this job, or left by an earlier one in the "
        "worker's memory or in the store; none in modes `export` and `refilter`.",
    )


class ImageContent(Wire):
    """What an image's bytes came to."""

    sha256: str = Field(description="The SHA-256 of the file's bytes, in hex.")
    width: int = Field(description="In pixels, as a viewer shows it.")
    height: int


class ImageValues(Wire):
    """Which of the file's values were shown as black and as white; the ends are swapped in a file whose 0 is white."""

    low: float
    high: float
    stretched: bool = Field(
        description="Whether the range was chosen by the values in the image; false: it is that of the file's depth."
    )


class ImageGeoreference(Wire):
    """Where an image lies on a map, as its own GeoTIFF tags say."""

    crs: str | None = Field(
        None, description='The CRS by its EPSG code, as "EPSG:32633"; null if it has none, or is not known.'
    )
    transform: tuple[float, float, float, float, float, float] | None = Field(
        None,
        description="[a, b, c, d, e, f]: a pixel's corner (column, row) is at x = a·column + b·row + c, "
        "y = d·column + e·row + f, in the upright image. Null if the file has none that can be used.",
    )
    geo_keys: dict[int, int | str | tuple[int, ...] | tuple[float, ...]] = Field(
        default_factory=dict, description="The CRS as GeoTIFF's keys, by their numbers."
    )
    note: str | None = Field(None, description="What was left out of what the file says, and why.")


class ResultSummary(Wire):
    """The result of a job that succeeded.  The masks are in the store, under ``prefix``."""

    prefix: str = Field(description="The folder of the result's objects in the bucket.")
    manifest_key: str
    masks: int
    best_score: float | None = Field(description="The highest predicted_iou; null without masks.")
    metrics: Metrics
    # Left out, not null, for the readers of earlier versions: they refuse fields that they do not know.
    image_values: ImageValues | None = Field(
        None,
        exclude_if=lambda values: values is None,
        description="How an image of more than 8 bits became one of 8; absent for any other.",
    )
    image: ImageContent | None = Field(
        None,
        exclude_if=lambda image: image is None,
        description="The image, of a job of mode `embed` or with `logits`: later jobs may name it.",
    )


class Failure(Wire):
    """Why a job failed, or expired."""

    code: str
    detail: str


class ProgressView(Wire):
    """The progress of a running job."""

    stage: Stage
    done: int = Field(0, description="Point batches decoded so far.")
    total: int = Field(0, description="Point batches in all; 0 while unknown.")
    masks: int = Field(0, description="Masks found so far.")


class AttemptView(Wire):
    """One worker's attempt at a job."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = Field(None, description="How it ended: a status, an error code, lease_ran_out, …")

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:  # Any: JSON
        """Read the ledger's form, whose times are milliseconds."""
        return cls(
            number=fields["number"],
            worker=fields["worker"],
            started_at=utc_time(int(fields["started_ms"])),
            ended_at=utc_time(int(fields["ended_ms"])) if "ended_ms" in fields else None,
            outcome=fields.get("outcome"),
        )


class JobUrls(Wire):
    """Ready-made URLs for the next requests."""

    self: str
    events: str
    result: str
    cancel: str
    retry: str


class JobView(Wire):
    """A job as the API shows it."""

    id: str
    status: Status
    mode: str
    model: str
    priority: str
    source: str | None = Field(
        None,
        description="The image: its S3 URI, its URL without what signs it, or the id of its upload. Null for jobs of "
        "earlier versions.",
    )
    file_name: str | None = Field(None, description="The image's name in results: `coco.json`, manifest, webhooks.")
    outputs: tuple[str, ...] = ()
    from_job: str | None = Field(
        None,
        exclude_if=lambda job_id: job_id is None,
        description="The job whose masks are written, of one of mode `export`; whose candidates, of `refilter`.",
    )
    spec: dict[str, Any] | None = Field(  # Any: JSON
        None,
        exclude_if=lambda spec: spec is None,
        description="All that the job asks for, but its webhook; where one job is got, until it has ended, and of one "
        "that failed. Of one that succeeded it is in its manifest. Left out if it is longer than 32 kB.",
    )
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    queue_s: float | None = Field(None, description="From creation to the first start.")
    run_s: float | None = Field(None, description="From the first start to the end.")
    queue_position: int | None = Field(
        None, description="Jobs that would start before this one if no more came; null when not queued."
    )
    starts_in_s: float | None = Field(
        None, description="An estimate from the pace of its queue; null when not queued, or when there is no estimate."
    )
    attempt: int = 0
    attempts: tuple[AttemptView, ...] | None = Field(
        None, description="The latest attempts, oldest first; null in lists."
    )
    cancel_requested: bool = False
    progress: ProgressView | None = None
    error: Failure | None = None
    result: ResultSummary | None = None
    inline: InlineMasks | None = Field(
        None,
        exclude_if=lambda masks: masks is None,
        description="The masks of a job that asked for them with `inline`, once it has succeeded. Only where one job "
        "is got or awaited; not in lists, events and webhooks.",
    )
    inline_omitted: InlineOmitted | None = Field(
        None, exclude_if=lambda why: why is None, description="Why such a job has no masks inline, and where they are."
    )
    metadata: dict[str, str] = Field(default_factory=dict)
    batch_id: str | None = Field(None, description="The batch that it belongs to.")
    request_id: str | None = Field(
        None,
        exclude_if=lambda request_id: request_id is None,
        description="The `X-Request-Id` of the request that created it; the logs' lines about the job have it, too.",
    )
    urls: JobUrls

    @property
    def ended(self) -> bool:
        """Whether the job has ended, also in a state that this version does not know."""
        return self.status.ended or (self.ended_at is not None and self.status not in list(Status))


@dataclass(frozen=True)
class JobRecord:
    """A job as the ledger holds it.  Times are Redis' clock, in milliseconds since the epoch."""

    id: str
    tenant: str
    queue: str
    status: Status
    #: Empty where only what is shown was read, and after the end of a job that did not fail.
    spec_json: str
    summary: SpecSummary
    created_ms: int
    #: The first claim, and the latest.
    started_ms: int | None
    claimed_ms: int | None
    ended_ms: int | None
    attempt: int
    #: Fence and token identify the claim: the fence grows, the token is random.
    fence: int
    token: str
    worker: str | None
    cancel_requested: bool
    progress: ProgressView | None
    error: Failure | None
    result: ResultSummary | None
    #: Grows with every change that matters to event streams.
    version: int
    batch_id: str | None
    #: The service's own bucket, as the API has it; empty where only what is shown was read, and in older records.
    bucket: str
    #: The name of its image (``ImageSource.name``); empty in older records.
    image: str
    #: Of the request that created it: its id, and its place in a trace as W3C's ``traceparent``; empty if unknown.
    request_id: str
    traceparent: str
    #: Since when it waited for the latest claim; only in a record that a claim returned, and 0 in older ones.
    waited_since_ms: int
    #: What people know its image by, and its name in results (``ImageSource.shown``); empty in older records.
    source: str = ""
    file_name: str = ""

    #: The fields that everything but ``spec`` is made from.
    SHOWN: ClassVar[tuple[str, ...]] = (
        *(
            "id",
            "tenant",
            "queue",
            "status",
            "version",
            "summary",
            "batch",
            "image",
            "source",
            "attempt",
            "fence",
            "token",
        ),
        *("worker", "cancel", "created_ms", "started_ms", "claimed_ms", "ended_ms", "stage", "done", "total", "masks"),
        *("error_code", "error_detail", "result", "request_id", "traceparent", "file_name"),
    )

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Self:
        """Read the record's Redis hash, or its fields SHOWN.  Raises RecordUnreadable."""
        try:
            return cls._from_fields(fields)
        except (KeyError, ValueError) as error:
            raise RecordUnreadable("job") from error

    @classmethod
    def _from_fields(cls, fields: Mapping[str, str]) -> Self:
        summary = SpecSummary.model_validate_json(fields.get("summary") or fields["spec"])
        return cls(
            id=fields["id"],
            tenant=fields["tenant"],
            queue=fields["queue"],
            status=Status(fields["status"]),
            spec_json=fields.get("spec", ""),
            summary=summary,
            created_ms=int(fields["created_ms"]),
            started_ms=_int_or_none(fields.get("started_ms")),
            claimed_ms=_int_or_none(fields.get("claimed_ms")),
            ended_ms=_int_or_none(fields.get("ended_ms")),
            attempt=int(fields["attempt"]),
            fence=int(fields["fence"]),
            token=fields.get("token", ""),
            worker=fields.get("worker"),
            cancel_requested="cancel" in fields,
            progress=ProgressView(
                stage=Stage(fields["stage"]),
                done=int(fields.get("done", 0)),
                total=int(fields.get("total", 0)),
                masks=int(fields.get("masks", 0)),
            )
            if fields.get("stage")
            else None,
            error=Failure(code=fields["error_code"], detail=fields["error_detail"]) if "error_code" in fields else None,
            result=ResultSummary.model_validate_json(fields["result"]) if "result" in fields else None,
            version=int(fields.get("version", 1)),
            batch_id=fields.get("batch"),
            bucket=fields.get("bucket", ""),
            image=fields.get("image", ""),
            request_id=fields.get("request_id", ""),
            traceparent=fields.get("traceparent", ""),
            waited_since_ms=_waited_since_ms(fields, summary),
            source=(source := fields.get("source", "")),
            file_name=fields.get("file_name") or (file_name_of(source) if source else ""),
        )

    @cached_property
    def spec(self) -> AnySpec:
        """All that the job asks for; only in a record that a claim returned.

        Raises RecordUnreadable when this version cannot do all of it.
        """
        return read_spec(self.spec_json)

    @property
    def tried_for_s(self) -> float:
        """The seconds between the first claim and the latest."""
        return (self.claimed_ms - self.started_ms) / 1000 if self.started_ms and self.claimed_ms else 0.0

    @property
    def log_ids(self) -> dict[str, str | int]:
        """The fields that every log line about this attempt carries."""
        batch = {"batch_id": self.batch_id} if self.batch_id else {}
        return {"job_id": self.id, "attempt": self.attempt, **batch, **origin_ids(self)}

    def view(
        self,
        model: str,
        base_url: str,
        place: QueuePlace | None = None,
        attempts: tuple[AttemptView, ...] | None = None,
    ) -> JobView:
        """Return the view for the job's owner.

        model: the name of the model when the spec names none.  base_url: the API's URL, without a trailing slash.
        Raises RecordUnreadable.
        """
        url = f"{base_url}/v1/jobs/{self.id}"
        return JobView(
            id=self.id,
            status=self.status,
            mode=self.summary.mode,
            model=self.summary.model or model,
            priority=self.summary.priority,
            source=self.source or None,
            file_name=self.file_name or None,
            outputs=() if self.summary.mode == "embed" else self.summary.outputs,
            from_job=self.summary.from_job,
            created_at=utc_time(self.created_ms),
            started_at=utc_time(self.started_ms) if self.started_ms else None,
            ended_at=utc_time(self.ended_ms) if self.ended_ms else None,
            queue_s=(self.started_ms - self.created_ms) / 1000 if self.started_ms else None,
            run_s=(self.ended_ms - self.started_ms) / 1000 if self.started_ms and self.ended_ms else None,
            queue_position=place.ahead if place else None,
            starts_in_s=place.starts_in_s if place else None,
            attempt=self.attempt,
            attempts=attempts,
            cancel_requested=self.cancel_requested,
            progress=self.progress if self.status is Status.PROCESSING else None,
            error=self.error,
            result=self.result,
            metadata=self.summary.metadata,
            batch_id=self.batch_id,
            request_id=self.request_id or None,
            urls=JobUrls(
                self=url,
                events=f"{url}/events",
                result=f"{url}/result",
                cancel=f"{url}/cancel",
                retry=f"{url}/retry",
            ),
        )


def _waited_since_ms(fields: Mapping[str, str], summary: SpecSummary) -> int:
    """Return since when a claimed job had waited: its creation, its retry, or the end of the attempt before."""
    if "claimed_ms" not in fields or "start_by_ms" not in fields:
        return 0
    if fields["started_ms"] != fields["claimed_ms"]:
        earlier = json.loads(fields.get("attempts", "[]"))
        return int(earlier[-1]["ended_ms"]) if earlier else 0
    return int(fields["start_by_ms"]) - 1000 * summary.start_deadline_s


def origin_ids(record: JobRecord | BatchRecord) -> dict[str, str]:
    """Return the fields of log lines that name the request which created a job or a batch, and its trace."""
    ids = {"request_id": record.request_id, "trace_id": record.traceparent[3:35]}
    return {name: value for name, value in ids.items() if value}


def shown_spec(spec_json: str) -> dict[str, Any]:  # Any: JSON
    """Return a spec as its owner may see it later: without its webhook, and without what signs its image's URL."""
    spec = json.loads(spec_json)
    spec.pop("webhook", None)
    if isinstance(spec.get("image"), dict) and isinstance(url := spec["image"].get("url"), str):
        spec["image"] = {**spec["image"], "url": shown_url(url)}
    return cast("dict[str, Any]", spec)


def _int_or_none(text: str | None) -> int | None:
    return int(text) if text is not None else None
