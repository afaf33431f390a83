"""The base of every value on the wire, and the forms of ids and URLs in it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

from maskfleet.jobs.addresses import AddressRefused, split_url

#: The forms of ids, as regular expressions.
JOB_ID = r"job_[0-9a-f]{32}"
BATCH_ID = r"batch_[0-9a-f]{32}"
UPLOAD_ID = r"upl_[0-9a-f]{32}"


class Wire(BaseModel):
    """A frozen value on the wire; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def utc_time(ms: int) -> datetime:
    """Return a time of Redis' clock as a datetime.  ms: since the epoch."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def _is_s3_uri(uri: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f]+", uri):
        raise PydanticCustomError("invalid_s3_uri", "Write it as s3://bucket/key.")
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
HttpUrl = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_is_http_url)]
