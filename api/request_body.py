"""Request bodies, parsed into typed values.  All input bytes are read here and nowhere else."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flask import request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from maskfleet.api.services import Services, take_room_for_body
from maskfleet.jobs.errors import InvalidRequest, UnsupportedCoding
from maskfleet.jobs.schema.base64_text import decode_base64
from maskfleet.jobs.schema.batch_spec import Batch, parse_batch
from maskfleet.jobs.schema.record import ModelSpec
from maskfleet.jobs.schema.spec import (
    IMAGE_COMES_BESIDE,
    file_name_of,
    invalid_request,
    parse_embed_request,
    parse_spec,
)

#: A spec is kept in Redis, which holds small things only.
MAX_SPEC_BYTES = 256 * 1024
#: Visible ASCII characters, as a regular expression.
IDEMPOTENCY_KEY = r"[\x21-\x7e]{1,255}"
#: The upload's id in IMAGE_COMES_BESIDE.
UNSTORED = str(IMAGE_COMES_BESIDE.upload_id)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as it was sent.  image: the bytes sent with the request; None when the spec only names an image."""

    spec: ModelSpec
    image: bytes | None


def read_submission(services: Services) -> Submission:
    """Read a job from JSON, or from multipart/form-data with parts ``job`` and ``image``."""
    return _read_submission(services, parse_spec, must_describe=True)


def read_image(services: Services) -> Submission:
    """Read an image to make known as ``read_submission`` reads a job; the part ``job`` may be left out."""
    return _read_submission(services, lambda text: parse_embed_request(text).job(), must_describe=False)


def _read_submission(services: Services, parse: Callable[[bytes], ModelSpec], *, must_describe: bool) -> Submission:
    max_image_bytes = services.settings.max_image_bytes
    if request.mimetype == "application/json":
        body = _json()
        submission = services.cpu.run(len(body), _parse_submission, body, parse)
    elif request.mimetype == "multipart/form-data":
        _check_coding()
        take_room_for_body()
        submission = _read_multipart(max_image_bytes, parse, must_describe=must_describe)
    else:
        raise UnsupportedMediaType
    if submission.image is not None and len(submission.image) > max_image_bytes:
        raise InvalidRequest(
            "image_file_too_large", f"The image file is larger than the limit of {max_image_bytes:,} bytes.", status=413
        )
    return submission


def read_batch(services: Services) -> Batch:
    """Read a batch from JSON."""
    body = _json()
    return services.cpu.run(len(body), parse_batch, body)


def read_json(model: type[Model], code: str) -> Model:
    """Read a small JSON body.  Raises InvalidRequest (``malformed_json``, or ``code``)."""
    request.max_content_length = min(MAX_SPEC_BYTES, request.max_content_length or MAX_SPEC_BYTES)
    try:
        return model.model_validate_json(_json(), strict=True)
    except ValidationError as error:
        raise _recoded(invalid_request(error), code) from error


def read_query(model: type[Model]) -> Model:
    """Read the query parameters.  Raises InvalidRequest (``invalid_query``)."""
    try:
        return model.model_validate_strings(request.args.to_dict())
    except ValidationError as error:
        raise _recoded(invalid_request(error), "invalid_query") from error


def read_idempotency_key() -> str:
    """Return the ``Idempotency-Key`` header; empty without one."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return ""
    if not re.fullmatch(IDEMPOTENCY_KEY, key):
        raise InvalidRequest(
            "invalid_idempotency_key", "An Idempotency-Key must be 1 to 255 visible ASCII characters.", status=400
        )
    return key


def _json() -> bytes:
    """Return the body of a JSON request, without a byte order mark, which some programs write before UTF-8."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    _check_coding()
    take_room_for_body()
    return request.get_data(cache=False).removeprefix(codecs.BOM_UTF8)


def _check_coding() -> None:
    """Raise UnsupportedCoding for a compressed body: a small one may unpack to any size, and images hardly shrink."""
    coding = request.headers.get("Content-Encoding", "").strip()
    if coding.lower() not in ("", "identity"):
        raise UnsupportedCoding(coding)


def _recoded(error: InvalidRequest, code: str) -> InvalidRequest:
    return error if error.code == "malformed_json" else InvalidRequest(code, error.detail, faults=error.faults)


def _parse_submission(body: bytes, parse: Callable[[bytes], ModelSpec]) -> Submission:
    spec = parse(body)
    return Submission(spec, decode_base64(spec.image.base64) if spec.image.base64 is not None else None)


def _read_multipart(max_image_bytes: int, parse: Callable[[bytes], ModelSpec], *, must_describe: bool) -> Submission:
    try:
        parts: list[tuple[str, str | FileStorage]] = [
            *request.form.items(multi=True),
            *request.files.items(multi=True),
        ]
    except RequestEntityTooLarge as error:
        if request.max_content_length and (request.content_length or 0) > request.max_content_length:
            raise
        raise InvalidRequest(
            "malformed_multipart", "A part without a file name is too large, or there are too many parts.", status=413
        ) from error
    found: dict[str, bytes] = {}
    file_name: str | None = None
    for name, part in parts:
        if name not in ("job", "image") or name in found:
            why = "appears twice" if name in found else "is unknown"
            named = (name or "")[:80]  # a part may lack a name
            raise InvalidRequest(
                "malformed_multipart", f"The part {named!r} {why}; send one job part and one image part."
            )
        if name == "image" and isinstance(part, FileStorage):
            file_name = _own_name(part.filename or "")
        limit = MAX_SPEC_BYTES if name == "job" else max_image_bytes
        found[name] = part.stream.read(limit + 1) if isinstance(part, FileStorage) else part.encode()
    if not must_describe:
        found.setdefault("job", b"{}")
    for name in ("job", "image"):
        if name not in found:
            raise InvalidRequest("malformed_multipart", f"The part {name!r} is missing.")
    if len(found["job"]) > MAX_SPEC_BYTES:
        raise spec_too_large()
    return Submission(parse(_with_image(found["job"].removeprefix(codecs.BOM_UTF8), file_name)), found["image"])


def _with_image(job: bytes, file_name: str | None) -> bytes:
    """Put a placeholder for the image part into a job's JSON."""
    try:
        document = from_json(job)
    except ValueError as error:
        raise InvalidRequest("malformed_json", f"The part 'job' is not valid JSON: {error}", status=400) from error
    if not isinstance(document, dict):
        return job  # parse_spec reports what is wrong with it
    if "image" in document:
        raise InvalidRequest.at(
            "/image", "invalid_spec", "The image is sent as its own part; leave this field out.", fault="image_twice"
        )
    image = {"upload_id": UNSTORED, **({"file_name": file_name} if file_name else {})}
    return to_json({**document, "image": image}, inf_nan_mode="constants")


def _own_name(given: str) -> str | None:
    """Return the name of an image's part, without its folder; None if it says nothing."""
    name = given.replace("\\", "/").rpartition("/")[2]
    return None if name in ("", "image", "blob") or len(name) > 255 or file_name_of(name) != name else name


def spec_too_large() -> InvalidRequest:
    return InvalidRequest(
        "spec_too_large",
        f"A job without its image may be at most {MAX_SPEC_BYTES // 1024} KiB. Split the prompts across several jobs.",
        status=413,
    )
