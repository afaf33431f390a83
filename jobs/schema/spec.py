"""The spec of a job: the request body of ``POST /v1/jobs``, validated.

The same models generate the OpenAPI document.  Prompts are in ``prompts``.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from maskfleet.jobs.errors import FieldFault, InvalidRequest, RecordUnreadable
from maskfleet.jobs.schema.base64_text import check_base64
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.wire import RECORDED, HttpUrl, ImageId, JobId, Request, S3Uri, Sha256, UploadId

#: Limits on one request.  A spec is kept in Redis, which holds small things only.
MAX_PROMPTS = 1000
#: Every view of a batch lists the ids of all its jobs; for this many, that is about 40 kB.
MAX_BATCH_IMAGES = 1000
#: Keys and values of the longest, in ASCII, are 9 kB, so that they fit a webhook's body (`events.MAX_BODY_BYTES`).
MAX_METADATA_KEYS = 16
#: Below these are candidates that few want to see, and that cost most: see docs/decisions/0072.
KEEP_PRED_IOU_THRESH, KEEP_STABILITY_SCORE_THRESH = 0.8, 0.9
DEFAULT_START_DEADLINE_S = 24 * 3600
DEFAULT_RUN_TIMEOUT_S = 900


class Output(StrEnum):
    """A format that results are written in."""

    COCO = "coco"
    COCO_POLYGONS = "coco_polygons"
    PNG = "png"
    MASKS_ZIP = "masks_zip"
    LABEL_MAP = "label_map"
    OVERLAY = "overlay"
    GEOJSON = "geojson"
    SVG = "svg"
    YOLO = "yolo"
    PANOPTIC = "panoptic"
    LOGITS = "logits"


class Inline(StrEnum):
    """The form of masks in the job's own JSON."""

    RLE = "rle"
    POLYGONS = "polygons"


class OverlayFormat(StrEnum):
    """A format that the overlay is written in."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


class Priority(StrEnum):
    """The class of queue that a job waits in; workers drain the classes in this order."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"


class EventName(StrEnum):
    """The events of a job: its start, and each way that it can end."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


#: The default events: each way to end.
ENDS = tuple(name for name in EventName if name is not EventName.STARTED)


#: What may stand before the base64 text: the head of a data: URL.  Source: RFC 2397; the Fetch Standard, "data: URLs".
_DATA_URL = re.compile(r"data:[^,]{0,255};[ ]*base64[ ]*,", re.IGNORECASE)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
#: ASCII white space, as the Infra Standard's "forgiving-base64 decode" drops it.
_WHITE_SPACE = b"\t\n\x0c\r "


def _standard_base64(text: str) -> str:
    """Return base64 in its standard form, from any form that programs write it in."""
    if head := _DATA_URL.match(text[:300]):
        text = text[head.end() :]
    try:
        check_base64(text)
    except ValueError:  # includes binascii.Error
        pass
    else:
        return text
    digits = text.encode("ascii", "replace").translate(_URL_SAFE, delete=_WHITE_SPACE)
    bare = digits.rstrip(b"=")
    padding = b"=" * (-len(bare) % 4)
    try:
        if digits not in (bare, bare + padding):
            raise binascii.Error("its padding is wrong")
        standard = (bare + padding).decode("ascii")
        check_base64(standard)
    except ValueError as error:
        raise PydanticCustomError(
            "invalid_base64",
            "The text is not base64. Send the standard or the URL-safe alphabet, with or without line breaks and "
            "padding, or a data: URL with ;base64.",
        ) from error
    return standard


def _is_one_object(uri: Any, info: ValidationInfo) -> Any:  # Any: what was sent
    """Refuse what names many objects: it would be accepted, and fail when a worker looks for the one."""
    if not isinstance(uri, str) or info.context == RECORDED:
        return uri
    instead = "To segment many, send POST /v1/batches with source.prefix{pattern}."
    if re.fullmatch(r"s3://[^/]+/?|s3://.*/", uri, re.DOTALL):
        raise PydanticCustomError(
            "s3_uri_is_a_folder",
            "It names a folder, not an object. " + instead.format(pattern="") + " An image is s3://bucket/key.",
        )
    if "*" in uri.rpartition("/")[2]:
        raise PydanticCustomError(
            "s3_uri_is_a_pattern",
            "It names objects by a pattern; an image is one object. " + instead.format(pattern=" and source.pattern"),
        )
    return uri


#: The parameters of a URL's query that sign it.  Source: OpenTelemetry's semantic conventions, `url.full`; Amazon S3,
#: "Authenticating requests: using query parameters"; Google Cloud Storage, "Signed URLs".
_SIGNING = re.compile(
    r"(?<![^&])((?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|signature|sig"
    r"|token|access_token|key|api_key|apikey)=)[^&]*",
    re.IGNORECASE,
)
#: Stands for what signs a URL, where that is shown.
_REDACTED = "REDACTED"


def shown_url(url: str) -> str:
    """Return a URL without what signs it: who reads it learns which image it is, not how to fetch it."""
    address, question, query = url.partition("#")[0].partition("?")
    return address + question + _SIGNING.sub(rf"\1{_REDACTED}", query)


def is_signed(shown: str) -> bool:
    """Return whether a URL lacks what signed it, as ``shown_url`` returns it."""
    return any(found[0].endswith(f"={_REDACTED}") for found in _SIGNING.finditer(shown.partition("?")[2]))


def file_name_of(source: str) -> str:
    """Return a file name for an image: the last part of its key or of its URL's path, or its upload's id."""
    path = source if not source.startswith(("http://", "https://")) else unquote(urlsplit(source).path)
    name = path.rpartition("/")[2]
    return name if _is_plain(name) else "image"


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and name.isprintable() and not any(char in name for char in "/\\")


def _is_file_name(name: str) -> str:
    if not _is_plain(name):
        raise PydanticCustomError("invalid_file_name", "Give a name alone: no folder, and no control characters.")
    return name


#: The fields of an image's source that name it.
_SOURCES = ("s3_uri", "url", "upload_id", "base64", "image_id")


class ImageSource(Request):
    """Where to find the image: exactly one of the five.  The image part of a multipart request becomes an upload."""

    s3_uri: Annotated[S3Uri, BeforeValidator(_is_one_object)] | None = Field(
        None, description="An object in a bucket that the operator allows.", examples=["s3://photos/bee.jpg"]
    )
    url: HttpUrl | None = Field(None, description="A URL that a worker can fetch the image from.")
    upload_id: UploadId | None = Field(None, description="An upload made with `POST /v1/uploads`.")
    base64: Annotated[str, AfterValidator(_standard_base64)] | None = Field(
        None,
        description="The image's bytes in the request itself, for small images: standard or URL-safe base64, with or "
        "without line breaks and padding, or a `data:` URL.",
    )
    image_id: ImageId | None = Field(None, description="An image that `POST /v1/images` made known.")
    sha256: Sha256 | None = Field(
        None,
        description="The SHA-256 of the image's bytes, in hex, if you know it: a job whose image has another one fails "
        "with `image_changed`.",
    )

    file_name: Annotated[str, StringConstraints(max_length=255), AfterValidator(_is_file_name)] | None = Field(
        None,
        description="Your own name for it, by which results and webhooks call it. Default: the last part of its key or "
        "path, the name of its part in a multipart request, or its upload's id.",
    )

    @model_validator(mode="after")
    def _names_one_source(self) -> ImageSource:
        if len([name for name in _SOURCES if getattr(self, name) is not None]) != 1:
            raise PydanticCustomError(
                "image_source", "Give exactly one of s3_uri, url, upload_id, base64 and image_id."
            )
        return self

    @property
    def name(self) -> str:
        """The same for all jobs that name the same upload or address; empty for an image in the request itself."""
        address = self.s3_uri or self.url
        return self.upload_id or (f"src_{hashlib.sha256(address.encode()).hexdigest()[:32]}" if address else "")

    @property
    def shown(self) -> str:
        """What people know it by: its URI, its URL without what signs it, or its upload's id."""
        return self.s3_uri or (shown_url(self.url) if self.url else self.upload_id) or ""

    @property
    def shown_file_name(self) -> str:
        """The caller's name for it, or one that is made from its source."""
        return self.file_name or file_name_of(self.shown)


class EverythingParams(Request):
    """Parameters of mode ``everything``: names, meanings and defaults of transformers' mask-generation pipeline.

    ``crops_suppression``, ``min_mask_area`` and the three about candidates are our own.
    """

    points_per_batch: int = Field(64, ge=1, le=4096, description="Points decoded at once.")
    pred_iou_thresh: float = Field(
        0.88, ge=0, le=1, description="Masks whose predicted IoU is not above this are dropped."
    )
    stability_score_thresh: float = Field(0.95, ge=0, le=1, description="Masks less stable than this are dropped.")
    stability_score_offset: float = Field(
        1.0, gt=0, le=100, description="Threshold shift used for the stability score."
    )
    mask_threshold: float = Field(0.0, ge=-100, le=100, description="The logit above which a pixel is in the mask.")
    points_per_crop: int = Field(32, ge=1, le=128, description="Points along one side of the grid.")
    crops_n_layers: int = Field(
        0, ge=0, le=3, description="Layers of crops to segment as well; layer i has (2**i)² crops."
    )
    crops_nms_thresh: float = Field(
        0.7, ge=0, le=1, description="Box IoU above which the lower-scored mask is dropped."
    )
    crops_suppression: Literal["original", "library"] = Field(
        "original",
        description="How overlapping masks from different crops are dropped. original, as in SAM's own generator: "
        "within each crop by predicted IoU, then across all crops in favour of smaller ones. library, as in "
        "transformers: once across all crops by predicted IoU.",
    )
    min_mask_area: int = Field(
        0, ge=0, le=10**9, description="Masks with fewer pixels are dropped, before those that overlap."
    )
    crop_overlap_ratio: float = Field(
        512 / 1500, ge=0, lt=1, description="How far crops overlap, as a fraction of the image."
    )
    crop_n_points_downscale_factor: int = Field(
        1, ge=1, le=8, description="The grid's side is divided by this at each layer."
    )
    keep_candidates: bool = Field(
        False,
        description="Also keep the candidates that the thresholds drop, so that the result can be filtered again with "
        "other thresholds: `POST /v1/jobs/{id}/refilter`.",
    )
    keep_pred_iou_thresh: float = Field(
        KEEP_PRED_IOU_THRESH,
        ge=0,
        le=1,
        description="Candidates whose predicted IoU is not above this, nor above `pred_iou_thresh`, are not kept.",
    )
    keep_stability_score_thresh: float = Field(
        KEEP_STABILITY_SCORE_THRESH,
        ge=0,
        le=1,
        description="Candidates less stable than this, and than `stability_score_thresh`, are not kept.",
    )

    @property
    def lowest_pred_iou_thresh(self) -> float:
        """The lowest threshold that masks may be filtered again with."""
        return min(self.pred_iou_thresh, self.keep_pred_iou_thresh) if self.keep_candidates else self.pred_iou_thresh

    @property
    def lowest_stability_score_thresh(self) -> float:
        """The lowest threshold that masks may be filtered again with."""
        own = self.stability_score_thresh
        return min(own, self.keep_stability_score_thresh) if self.keep_candidates else own


class PromptParams(Request):
    """Parameters of modes ``point`` and ``box``."""

    multimask: bool = Field(False, description="Return all three candidates for each object, not only the best one.")
    points_per_batch: int = Field(64, ge=1, le=4096, description="Prompts decoded at once.")
    mask_threshold: float = Field(0.0, ge=-100, le=100, description="The logit above which a pixel is in the mask.")


class Webhook(Request):
    """Where to send the job's webhooks (Standard Webhooks)."""

    url: HttpUrl
    events: tuple[EventName, ...] = Field(
        ENDS, min_length=1, description="The events to send. Default: every end, but not the start."
    )


Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=MAX_METADATA_KEYS),
]
StartDeadline = Annotated[
    int, Field(ge=1, le=7 * 24 * 3600, description="Seconds after which the job expires if not started.")
]
RunTimeout = Annotated[int, Field(ge=1, le=3600, description="Seconds that one attempt may run; then the job fails.")]


class JobOptions(Request):
    """The fields of a job of any mode besides its image."""

    model: str | None = Field(None, max_length=200, description="One of `GET /v1/models`. Default: the server's first.")
    priority: Priority = Priority.NORMAL
    start_deadline_s: StartDeadline = DEFAULT_START_DEADLINE_S
    run_timeout_s: RunTimeout = DEFAULT_RUN_TIMEOUT_S
    metadata: Metadata = Field(default_factory=dict, description="Your own strings, returned with the job.")


class MaskOptions(JobOptions):
    """The fields of a job that makes masks, besides its image and mode; the same for all jobs of a batch."""

    outputs: tuple[Output, ...] = Field((Output.COCO,), min_length=1, description="The formats to write the result in.")
    overlay_format: OverlayFormat = Field(
        OverlayFormat.PNG, description="The format of output `overlay`. webp and jpeg are lossy and much smaller."
    )


class Everything(Request):
    """Segment everything: a grid of points over the whole image."""

    mode: Literal["everything"]
    params: EverythingParams = EverythingParams()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return ()


class Points(Request):
    """Segment the objects at the given points."""

    mode: Literal["point"]
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=MAX_PROMPTS)
    params: PromptParams = PromptParams()

    @model_validator(mode="after")
    def _points_only(self) -> Self:
        for number, prompt in enumerate(self.prompts):
            if not prompt.points or prompt.box is not None:
                raise PydanticCustomError(
                    "prompt_mode",
                    "Prompt {number}: mode point takes points and no box; use mode box for boxes.",
                    {"number": number},
                )
        return self


class Boxes(Request):
    """Segment the objects inside boxes; points may refine a box."""

    mode: Literal["box"]
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=MAX_PROMPTS)
    params: PromptParams = PromptParams()

    @model_validator(mode="after")
    def _boxes(self) -> Self:
        for number, prompt in enumerate(self.prompts):
            if prompt.box is None:
                raise PydanticCustomError(
                    "prompt_mode", "Prompt {number}: mode box needs a box in each prompt.", {"number": number}
                )
        return self


class _OneImage(Request):
    image: ImageSource


class _Inline(Request):
    inline: Inline | None = Field(
        None,
        description="Also return the masks in the job itself, as COCO's compressed RLE or as polygons; up to 1 MiB.",
    )


class _MaskJob(MaskOptions, _Inline):
    # After inline, which its check reads: see the order of bases.
    outputs: tuple[Output, ...] = Field(
        (Output.COCO,), description="The formats to write the result in; may be empty with `inline`."
    )
    webhook: Webhook | None = None

    @field_validator("outputs")
    @classmethod
    def _masks_are_somewhere(cls, outputs: tuple[Output, ...], info: ValidationInfo) -> tuple[Output, ...]:
        return _some_masks(outputs, info)


def _some_masks(outputs: tuple[Output, ...], info: ValidationInfo) -> tuple[Output, ...]:
    if not outputs and info.data.get("inline") is None:
        raise PydanticCustomError("too_short", "Name at least one output, or ask for the masks with inline.")
    return outputs


#: Stands for an image that was left out, until it is known why.
_LEFT_OUT = ImageSource(image_id="img_" + "0" * 32)


class _ImageOrMaskInputs(Request):
    # After the prompts, which its check reads: see the order of bases below.
    image: ImageSource = Field(
        default_factory=lambda: _LEFT_OUT,
        validate_default=True,
        description="May be left out if the `mask_input` of every prompt names the same job: then it is that job's.",
    )

    @field_validator("image")
    @classmethod
    def _is_named(cls, image: ImageSource, info: ValidationInfo) -> ImageSource:
        if image is not _LEFT_OUT:
            return image
        prompts: tuple[Prompt, ...] = info.data.get("prompts", ())
        jobs = {prompt.mask_input.job_id if prompt.mask_input else None for prompt in prompts}
        if len(jobs) != 1 or not (job_id := jobs.pop()):
            raise PydanticCustomError(
                "missing", "Name the image. It may be left out only if the mask_input of every prompt names one job."
            )
        return ImageSource(image_id=image_id_of(job_id))


def image_id_of(job_id: str) -> str:
    """Return the id under which jobs may name the image of an earlier one, if that keeps it: see ``SpecSummary``."""
    return f"img_{job_id.removeprefix('job_')}"


def job_id_of(image_id: str) -> str:
    """Return the id of the job whose image it is."""
    return f"job_{image_id.removeprefix('img_')}"


#: A placeholder in a spec for an image sent as its own part, until that is stored.
IMAGE_COMES_BESIDE = ImageSource(upload_id="upl_" + "0" * 32)


class EverythingJob(Everything, _MaskJob, _OneImage):
    """Segment everything: a grid of points over the whole image."""


class PointJob(_ImageOrMaskInputs, Points, _MaskJob):
    """Segment the objects at the given points."""


class BoxJob(_ImageOrMaskInputs, Boxes, _MaskJob):
    """Segment the objects inside boxes; points may refine a box."""


class EmbedRequest(JobOptions, _OneImage):
    """An image to make known: it is encoded now, so that later jobs on it need not."""

    webhook: Webhook | None = None

    def job(self) -> EmbedJob:
        """Return the job that does it."""
        return EmbedJob.model_construct(mode="embed", **{name: getattr(self, name) for name in type(self).model_fields})


class EmbedJob(EmbedRequest):
    """Encode the image, so that later jobs on it need not.  It makes no masks."""

    mode: Literal["embed"]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return ()

    @property
    def outputs(self) -> tuple[Output, ...]:
        return ()


class _DerivedRequest(_Inline):
    # After inline, which its check reads.
    outputs: tuple[Output, ...] = Field(
        (),
        validate_default=True,
        description="The formats to write; may be empty with `inline`. Any but `logits`, which only the model makes.",
    )
    overlay_format: OverlayFormat = Field(
        OverlayFormat.PNG, description="The format of output `overlay`. webp and jpeg are lossy and much smaller."
    )
    priority: Priority = Priority.NORMAL
    start_deadline_s: StartDeadline = DEFAULT_START_DEADLINE_S
    run_timeout_s: RunTimeout = DEFAULT_RUN_TIMEOUT_S
    metadata: Metadata = Field(default_factory=dict, description="Your own strings, returned with the job.")
    webhook: Webhook | None = None

    @field_validator("outputs")
    @classmethod
    def _masks_are_somewhere(cls, outputs: tuple[Output, ...], info: ValidationInfo) -> tuple[Output, ...]:
        return _some_masks(outputs, info)


class _DerivedJob(Request):
    from_job: JobId = Field(description="The job whose masks they are.")
    image: ImageSource
    model: str | None = Field(None, description="The one that made the masks; this job needs none.")

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return ()


class ExportRequest(_DerivedRequest):
    """The outputs that are to be made of an earlier job's masks."""

    def job(self, from_job: str, image: ImageSource, model: str | None) -> ExportJob:
        """Return the job that makes them.  image, model: of the earlier job."""
        fields = {name: getattr(self, name) for name in _DerivedRequest.model_fields}
        return ExportJob.model_construct(mode="export", from_job=from_job, image=image, model=model, **fields)


class ExportJob(_DerivedJob, _DerivedRequest):
    """Write an earlier job's masks in further formats.  It needs no model, and the image for an overlay alone."""

    mode: Literal["export"]


class Thresholds(Request):
    """Thresholds of mode ``everything`` that kept candidates may be filtered again with; those left out stay."""

    pred_iou_thresh: float | None = Field(
        None, ge=0, le=1, description="Masks whose predicted IoU is not above this are dropped."
    )
    stability_score_thresh: float | None = Field(
        None, ge=0, le=1, description="Masks less stable than this are dropped."
    )
    crops_nms_thresh: float | None = Field(
        None, ge=0, le=1, description="Box IoU above which the lower-scored mask is dropped."
    )
    min_mask_area: int | None = Field(None, ge=0, le=10**9, description="Masks with fewer pixels are dropped.")

    def on(self, params: EverythingParams) -> EverythingParams:
        """Return the parameters that a full run with these thresholds would have.

        params: of the job that kept its candidates.  Raises InvalidRequest (``threshold_not_kept``) for a threshold
        below which it kept none.
        """
        given = self.model_dump(exclude_none=True)
        lowest = {
            "pred_iou_thresh": params.lowest_pred_iou_thresh,
            "stability_score_thresh": params.lowest_stability_score_thresh,
        }
        for name, least in lowest.items():
            if given.get(name, least) < least:
                raise InvalidRequest.at(
                    f"/params/{name}",
                    "threshold_not_kept",
                    f"The job kept no candidates below {least:g}. Give {least:g} or more, or send the image again as a "
                    f"new job, with keep_{name} as low as this.",
                )
        return params.model_copy(update={**given, "keep_candidates": False})


class RefilterRequest(_DerivedRequest):
    """The thresholds that an earlier job's candidates are to be filtered with, and the outputs."""

    outputs: tuple[Output, ...] = Field(
        (Output.COCO,),
        description="The formats to write; may be empty with `inline`. Any but `logits`, which only the model makes.",
    )
    params: Thresholds = Thresholds()

    def job(self, from_job: str, image: ImageSource, model: str | None, params: EverythingParams) -> RefilterJob:
        """Return the job that does it.  image, model, params: of the earlier job.  Raises as ``Thresholds.on``."""
        fields = {name: getattr(self, name) for name in _DerivedRequest.model_fields}
        return RefilterJob.model_construct(
            mode="refilter", from_job=from_job, image=image, model=model, params=self.params.on(params), **fields
        )


class RefilterJob(_DerivedJob, _DerivedRequest):
    """Filter an earlier job's candidates with other thresholds.  It needs no model, and the image for an overlay alone.

    params: as if the masks had been made with them.
    """

    mode: Literal["refilter"]
    params: EverythingParams


#: A job on what an earlier one wrote, which needs no model.
DerivedJob = ExportJob | RefilterJob


JobSpec = Annotated[EverythingJob | PointJob | BoxJob | EmbedJob, Field(discriminator="mode")]
_SENT: TypeAdapter[EverythingJob | PointJob | BoxJob | EmbedJob] = TypeAdapter(JobSpec)
#: A job that another route makes is not sent as it is recorded.
_RECORDED: TypeAdapter[EverythingJob | PointJob | BoxJob | EmbedJob | DerivedJob] = TypeAdapter(
    Annotated[EverythingJob | PointJob | BoxJob | EmbedJob | DerivedJob, Field(discriminator="mode")]
)


def parse_spec(text: bytes | str) -> EverythingJob | PointJob | BoxJob | EmbedJob:
    """Read a spec from JSON, with the schema's types exactly: no number in a string, no boolean for a number.

    Raises InvalidRequest: ``malformed_json`` (400) when it is not JSON, otherwise ``invalid_spec`` with one
    fault for each field.
    """
    try:
        return _SENT.validate_json(text, strict=True)
    except ValidationError as error:
        raise invalid_request(error) from error


def parse_embed_request(text: bytes | str) -> EmbedRequest:
    """Read an image to make known, as ``parse_spec`` reads a job; it is a job without a mode."""
    try:
        return EmbedRequest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise invalid_request(error) from error


def read_spec(text: str) -> EverythingJob | PointJob | BoxJob | EmbedJob | DerivedJob:
    """Read a spec that was validated when it was recorded, perhaps by a newer version, whose fields are ignored.

    Raises RecordUnreadable when it holds more than new fields, such as an output that this version cannot write.
    """
    try:
        return _RECORDED.validate_json(text, strict=True, extra="ignore", context=RECORDED)
    except ValidationError as error:
        raise RecordUnreadable("job", invalid_request(error).detail) from error


def dump_spec(spec: EverythingJob | PointJob | BoxJob | EmbedJob | DerivedJob) -> str:
    """Write a spec as JSON that ``parse_spec`` reads back."""
    return spec.model_dump_json(exclude_none=True)


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Translate pydantic's error to a pointer, a code and a sentence for each field, without the input values."""
    faults = tuple(
        FieldFault(_pointer(fault["loc"]), fault["type"], fault["msg"])
        for fault in error.errors(include_input=False, include_url=False, include_context=False)
    )
    # pydantic also calls a list too short when all its items are invalid; the items' own faults suffice.
    faults = tuple(
        fault
        for fault in faults
        if fault.code != "too_short" or not any(f.pointer.startswith(f"{fault.pointer}/") for f in faults)
    )
    if faults[0].code == "json_invalid":
        return InvalidRequest("malformed_json", f"The body is not valid JSON: {faults[0].detail}", status=400)
    first = faults[0]
    return InvalidRequest("invalid_spec", f"{first.pointer or '/'}: {first.detail}", faults=faults)


#: Tags of the unions over modes, which begin the locations of faults.
_MODES = ("everything", "point", "box", "embed", "export", "refilter")


def _pointer(location: tuple[int | str, ...]) -> str:
    # The tag of the union over modes is not part of the document.
    path = location[1:] if location and location[0] in _MODES else location
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)
