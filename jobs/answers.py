"""The API's other bodies: what it is asked beside a job's spec, and what it answers beside a job."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from jobs.record import JobView
from jobs.spec import Wire
from jobs.status import Status


class FieldProblem(Wire):
    """One field that is wrong."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a query parameter.")
    code: str
    detail: str


class Problem(Wire):
    """Why a request was not carried out, as RFC 9457 lays it out."""

    type: str = Field(description="A name for this kind of problem.", examples=["urn:maskfleet:problem:job_not_found"])
    title: str
    status: int = Field(description="The answer's HTTP status.")
    detail: str = Field(description="What to do.")
    code: str = Field(description="Stable; the last part of `type`. Branch on this.", examples=["job_not_found"])
    instance: str = Field(description="This one request, as in the header `X-Request-Id`; quote it when you ask us.")
    errors: tuple[FieldProblem, ...] | None = Field(None, description="Each field at fault.")


class JobQuery(Wire):
    """Which jobs to list."""

    status: Status | None = Field(None, description="Only jobs in this state.")
    cursor: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="Where to go on: `next_cursor` of the page before."
    )
    limit: int = Field(20, ge=1, le=100, description="Jobs on a page.")


class JobPage(Wire):
    """Jobs, newest first."""

    jobs: tuple[JobView, ...]
    next: str | None = Field(description="The address of the next page; null on the last one.")
    next_cursor: str | None


class UploadRequest(Wire):
    """An image that is to be uploaded, or an earlier mask's logits (application/octet-stream)."""

    content_type: Literal[
        "image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif", "application/octet-stream"
    ]
    size: int = Field(ge=1, description="Of the file, in bytes.")


class UploadView(Wire):
    """How to upload it: one request, with these headers and the file as its body."""

    upload_id: str = Field(description="For `image.upload_id` of a job, or a prompt's `mask_input`.")
    url: str
    method: Literal["PUT"] = "PUT"
    headers: dict[str, str]
    expires_at: datetime = Field(description="The link works until then.")


class ModelView(Wire):
    """A model that jobs may name."""

    name: str
    default: bool = Field(description="Used by jobs that name none.")
    ready_workers: int = Field(description="Workers that have it loaded. With 0, jobs wait for one to start.")


class ModelList(Wire):
    """The models, the default first."""

    models: tuple[ModelView, ...]


class Health(Wire):
    """The service is well."""

    status: Literal["live", "ready"]
