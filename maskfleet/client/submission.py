"""From the arguments of the client's caller to the spec and the bytes that are sent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypedDict

from pydantic import TypeAdapter, ValidationError

from maskfleet.client.pictures import PictureInMemory, pixels_digest, png_of
from maskfleet.jobs.image_types import image_format, media_type
from maskfleet.jobs.schema.batch_spec import Batch, BatchSpec
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import AnySpec
from maskfleet.jobs.schema.spec import (
    IMAGE_COMES_BESIDE,
    EmbedRequest,
    EverythingParams,
    ExportRequest,
    ImageSource,
    JobSpec,
    PromptParams,
    RefilterRequest,
    Thresholds,
    Webhook,
    file_name_of,
    invalid_request,
)

#: A file, an image's bytes, a picture in memory (an array, Pillow's image), an open file, or a URL that a worker can
#: read: ``s3://…``, ``https://…``.
Photo = str | Path | bytes | IO[bytes] | PictureInMemory

_URLS = ("s3://", "http://", "https://")
_SPEC: TypeAdapter[AnySpec] = TypeAdapter(JobSpec)
_BATCH: TypeAdapter[Batch] = TypeAdapter(BatchSpec)


class JobOptionFields(TypedDict, total=False):
    """The fields of a job of any mode besides its image, as keywords; see ``maskfleet.jobs.schema.spec``."""

    model: str
    priority: Literal["interactive", "normal", "bulk"]
    start_deadline_s: int
    run_timeout_s: int
    webhook: Webhook | Mapping[str, Any]  # Any: a URL and a list of names
    metadata: Mapping[str, str]


class ExportFields(TypedDict, total=False):
    """The fields of an export besides its outputs, as keywords; see ``maskfleet.jobs.schema.spec``."""

    overlay_format: Literal["png", "webp", "jpeg"]
    inline: Literal["rle", "polygons"]
    priority: Literal["interactive", "normal", "bulk"]
    start_deadline_s: int
    run_timeout_s: int
    webhook: Webhook | Mapping[str, Any]  # Any: a URL and a list of names
    metadata: Mapping[str, str]


class JobFields(JobOptionFields, total=False):
    """A job's fields as keywords; what each means is in ``maskfleet.jobs.schema.spec``."""

    mode: Literal["everything", "point", "box", "embed"]
    image: ImageSource | Mapping[str, str]
    prompts: Sequence[Prompt | Mapping[str, Any]]  # Any: numbers, nested as JSON has them
    params: EverythingParams | PromptParams | Mapping[str, float | bool]
    inline: Literal["rle", "polygons"]
    outputs: Sequence[str]
    overlay_format: Literal["png", "webp", "jpeg"]


def image_type(data: bytes) -> str:
    """Return an image's media type by its first bytes; ``application/octet-stream`` if unknown."""
    file_format = image_format(data)
    return media_type(file_format) if file_format else "application/octet-stream"


def source_of(photo: Photo) -> tuple[ImageSource, bytes | None]:
    """Return the image's source for the spec, and its bytes if they must be uploaded.

    Raises InvalidRequest for an invalid URL, OSError if a file cannot be read, TypeError for what is no picture.
    """
    if isinstance(photo, str) and photo.startswith(_URLS):
        try:
            return ImageSource(**{"s3_uri" if photo.startswith("s3://") else "url": photo}), None
        except ValidationError as error:
            raise invalid_request(error) from error
    name = _name_of(photo)
    named = {"file_name": name} if file_name_of(name) == name else {}
    return IMAGE_COMES_BESIDE.model_copy(update=named), bytes_of(photo)


def _name_of(photo: Photo) -> str:
    """Return a photo's file name, if it has one: also of an open file, or of Pillow's image of one."""
    path = photo if isinstance(photo, str | os.PathLike) else getattr(photo, "filename", getattr(photo, "name", ""))
    return Path(path).name[-255:] if isinstance(path, str | os.PathLike) else ""


def bytes_of(photo: Photo) -> bytes:
    """Return the bytes of an image.  Raises OSError if a file cannot be read, TypeError for what is no picture."""
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, str | os.PathLike):
        return Path(photo).read_bytes()
    if hasattr(photo, "__array_interface__"):
        return png_of(photo)
    if hasattr(photo, "read"):
        data: object = photo.read()
        if isinstance(data, bytes):
            return data
        raise TypeError('Open the file in binary mode: open(path, "rb").')
    raise TypeError(
        f"A photo is a path, bytes, an open file, an array, Pillow's image or a URL; not {type(photo).__name__}."
    )


def digest_of(photo: Photo) -> str:
    """Return a word for a photo's content: the same for the same URL, bytes or pixels.  Raises as ``bytes_of``."""
    if isinstance(photo, str) and photo.startswith(_URLS):
        return photo
    if hasattr(photo, "__array_interface__"):
        return pixels_digest(photo)
    return hashlib.sha256(bytes_of(photo)).hexdigest()


def known_image(image_id: str) -> ImageSource:
    """Return the source that names an image made known earlier.  Raises InvalidRequest (``invalid_spec``)."""
    try:
        return ImageSource(image_id=image_id)
    except ValidationError as error:
        raise invalid_request(error) from error


def uploaded_image(upload_id: str) -> ImageSource:
    """Return the source that names an upload.  Raises InvalidRequest (``invalid_spec``)."""
    try:
        return ImageSource(upload_id=upload_id)
    except ValidationError as error:
        raise invalid_request(error) from error


def embed_request(source: ImageSource, fields: JobOptionFields) -> EmbedRequest:
    """Return an image to make known.  Raises InvalidRequest (``invalid_spec``)."""
    try:
        return EmbedRequest.model_validate({**fields, "image": source})
    except ValidationError as error:
        raise invalid_request(error) from error


class RefilterFields(ExportFields, total=False):
    """The fields of a job that filters again besides its outputs, as keywords: thresholds, and those of an export."""

    pred_iou_thresh: float
    stability_score_thresh: float
    crops_nms_thresh: float
    min_mask_area: int


def export_request(outputs: Sequence[str], fields: ExportFields) -> bytes:
    """Serialise what is to be made of a job's masks.  Raises InvalidRequest (``invalid_spec``)."""
    try:
        asked = ExportRequest.model_validate({**fields, "outputs": tuple(outputs)})
    except ValidationError as error:
        raise invalid_request(error) from error
    return asked.model_dump_json(exclude_unset=True, exclude_none=True).encode()


def refilter_request(outputs: Sequence[str] | None, fields: RefilterFields) -> bytes:
    """Serialise what a job's candidates are to be filtered with.  Raises InvalidRequest (``invalid_spec``)."""
    thresholds = {name: value for name, value in fields.items() if name in Thresholds.model_fields}
    others = {name: value for name, value in fields.items() if name not in thresholds}
    given = {} if outputs is None else {"outputs": tuple(outputs)}
    try:
        asked = RefilterRequest.model_validate({**others, **given, "params": thresholds})
    except ValidationError as error:
        raise invalid_request(error) from error
    return asked.model_dump_json(exclude_unset=True, exclude_none=True).encode()


def one_object(
    points: Sequence[tuple[float, float]] | None,
    labels: Sequence[Literal[0, 1]] | None,
    box: tuple[float, float, float, float] | None,
    fields: JobFields,
) -> JobFields:
    """Return the fields of a job that segments one object, or everything, and returns its masks inline.

    What ``fields`` say stands.  Raises InvalidRequest (``invalid_spec``).
    """
    made: JobFields = {"inline": "rle", "outputs": ["coco", "overlay"]}
    if points is not None or labels is not None or box is not None:
        if "prompts" in fields:
            raise TypeError("Pass either prompts, or points, labels and box, which are one prompt.")
        given = {"points": points, "labels": labels, "box": box}
        try:
            prompt = Prompt.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise invalid_request(error) from error
        made["prompts"] = [prompt]
    prompts = made.get("prompts") or fields.get("prompts") or ()
    has_box = [prompt.box if isinstance(prompt, Prompt) else prompt.get("box") for prompt in prompts]
    made["mode"] = ("box" if all(has_box) else "point") if prompts else "everything"
    return {**made, **fields}


def complete(spec: AnySpec | None, fields: JobFields, source: ImageSource | None) -> AnySpec:
    """Return a spec, from a ready one or from keywords, with the photo's source as its image.

    Raises InvalidRequest (``invalid_spec``).
    """
    if spec is not None:
        if fields:
            raise TypeError("Pass either a spec or its fields as keywords, not both.")
        return spec.model_copy(update={"image": source}) if source else spec
    document = {**fields, "image": source} if source else dict(fields)
    try:
        return _SPEC.validate_python(document)
    except ValidationError as error:
        raise invalid_request(error) from error


def batch_document(images: Sequence[ImageSource], fields: Mapping[str, Any]) -> bytes:  # Any: a field's own type
    """Serialise a batch for the API.  fields: of its jobs, and without images its ``source``.

    Raises InvalidRequest (``invalid_spec``).
    """
    try:
        named = {"images": tuple(images)} if images else {}
        batch = _BATCH.validate_python({**fields, **named})
    except ValidationError as error:
        raise invalid_request(error) from error
    return batch.model_dump_json(exclude_unset=True, exclude_none=True).encode()


def document_of(spec: AnySpec | EmbedRequest, *, with_image: bool) -> bytes:
    """Serialise a spec for the API.  Fields left to their defaults are omitted: the server's defaults apply."""
    exclude = set() if with_image else {"image"}
    return spec.model_dump_json(exclude_unset=True, exclude_none=True, exclude=exclude).encode()
