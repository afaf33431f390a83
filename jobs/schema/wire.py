"""The bases of every value on the wire, and the forms of ids and URLs in it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationInfo
from pydantic_core import PydanticCustomError

from maskfleet.jobs.addresses import AddressRefused, split_url

#: The forms of ids, as regular expressions.
JOB_ID = r"job_[0-9a-f]{32}"
BATCH_ID = r"batch_[0-9a-f]{32}"
UPLOAD_ID = r"upl_[0-9a-f]{32}"
IMAGE_ID = r"img_[0-9a-f]{32}"
#: A bucket's name.  Source: Amazon S3, "General purpose bucket naming rules".
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"


#: The validation context for a record's own values: they were accepted once, perhaps by an older version of the rules.
RECORDED = {"recorded": True}
#: S3's limit.  Source: Amazon S3, "Naming Amazon S3 objects".
MAX_KEY_BYTES = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")


class Wire(BaseModel):
    """A frozen value that this service writes: in records, responses and events.

    A field that a newer version added is kept and passed on: see
    docs/decisions/0044-strict-at-the-door-tolerant-within.md.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Request(Wire):
    """A frozen part of what callers send: an unknown field is an error, or a typo would be ignored in silence."""

    model_config = ConfigDict(extra="forbid")


def utc_time(ms: int) -> datetime:
    """Return a time of Redis' clock as a datetime.  ms: since the epoch."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def key_fault(key: str) -> str:
    """Return what is wrong with a key or prefix in a caller's or an operator's bucket; empty if nothing is.

    A store may resolve ``..`` and empty parts, and read a backslash as a slash: such a key leads elsewhere.
    """
    if len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        return f"Its key is longer than {MAX_KEY_BYTES:,} bytes."
    if _CONTROL.search(key):
        return "Its key contains a control character or a backslash."
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "Its key has an empty part, or one that is . or .. alone."
    return ""


def _is_s3_uri(uri: str, info: ValidationInfo) -> str:
    found = re.fullmatch(rf"s3://{BUCKET}/([^\x00-\x1f]+)", uri)
    if not found:
        raise PydanticCustomError("invalid_s3_uri", "Write it as s3://bucket/key.")
    if info.context != RECORDED and (fault := key_fault(found[1])):
        raise PydanticCustomError("invalid_s3_uri", "{fault} Write it as s3://bucket/key.", {"fault": fault})
    return uri


def _is_http_url(url: str) -> str:
    try:
        split_url(url)
    except AddressRefused as error:
        raise PydanticCustomError("invalid_url", "{detail}", {"detail": error.detail}) from error
    return url


S3Uri = Annotated[str, StringConstraints(max_length=1200), AfterValidator(_is_s3_uri)]
JobId = Annotated[str, StringConstraints(pattern=f"^{JOB_ID}$")]
UploadId = Annotated[str, StringConstraints(pattern=f"^{UPLOAD_ID}$")]
ImageId = Annotated[str, StringConstraints(pattern=f"^{IMAGE_ID}$")]
#: In hex.
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
HttpUrl = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_is_http_url)]
