"""The API's other request and response bodies, besides those of jobs and batches."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from maskfleet.jobs.errors import FieldFault
from maskfleet.jobs.schema.delivery import DeliveryView
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import ImageSource
from maskfleet.jobs.schema.wire import HttpUrl, ImageId, Request, UploadId, Wire
from maskfleet.jobs.status import Status


class Problem(Wire):
    """Why a request failed: a problem document (RFC 9457)."""

    type: str = Field(description="A name for this kind of problem.", examples=["urn:maskfleet:problem:job_not_found"])
    title: str
    status: int = Field(description="The HTTP status of the response.")
    detail: str = Field(description="What is wrong, and what to do.")
    code: str = Field(description="Stable; the last part of `type`. Branch on this.", examples=["job_not_found"])
    instance: str = Field(description="This request, as in the header `X-Request-Id`; quote it when you ask for help.")
    errors: tuple[FieldFault, ...] | None = Field(
        None, description="Each invalid field; `pointer` is a JSON pointer, or the name of a query parameter."
    )


def _is_listed(status: Status) -> Status:
    if status not in list(Status):
        raise PydanticCustomError("enum", "Input should be one of: {states}.", {"states": ", ".join(Status)})
    return status


class JobQuery(Request):
    """Which jobs to list."""

    status: Annotated[Status, AfterValidator(_is_listed)] | None = Field(None, description="Only jobs in this state.")
    cursor: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="Where to continue: `next_cursor` of the previous page."
    )
    limit: int = Field(20, ge=1, le=100, description="Jobs per page.")


class JobPage(Wire):
    """Jobs, newest first."""

    jobs: tuple[JobView, ...]
    next: str | None = Field(description="The URL of the next page; null on the last one.")
    next_cursor: str | None


class UploadRequest(Request):
    """An image to upload, or an earlier mask's logits (application/octet-stream)."""

    content_type: Literal[
        "image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif", "application/octet-stream"
    ]
    size: int = Field(ge=1, description="The size of the file in bytes.")


class UploadView(Wire):
    """How to upload it: one request, with these headers and the file as its body."""

    upload_id: str = Field(description="For a job's `image.upload_id`, or a prompt's `mask_input`.")
    url: str
    method: Literal["PUT"] = "PUT"
    headers: dict[str, str]
    expires_at: datetime = Field(description="The link works until this time.")


class TokenRequest(Request):
    """What a token is to allow, and for how long."""

    ttl_s: int = Field(600, ge=1, le=3600, description="Seconds until it expires.")
    image_id: ImageId | None = Field(
        None, description="The only image that it is for, made known with `POST /v1/images`. Default: all of your jobs."
    )
    upload_id: UploadId | None = Field(
        None, description="The same for an upload; the image need not be there yet. At most one of the two."
    )
    scopes: tuple[Literal["jobs:read", "jobs:write", "jobs:interactive"], ...] | None = Field(
        None,
        min_length=1,
        description="Some of your key's own. Default: `jobs:read` and `jobs:write`, as far as your key has them.",
    )

    @model_validator(mode="after")
    def _is_for_one_image(self) -> Self:
        if self.image_id is not None and self.upload_id is not None:
            raise PydanticCustomError("token_image", "Give image_id or upload_id, not both.")
        return self

    @property
    def image(self) -> ImageSource | None:
        """The only image that it is for; None for no such limit."""
        if self.image_id is None and self.upload_id is None:
            return None
        return ImageSource(image_id=self.image_id, upload_id=self.upload_id)


class TokenView(Wire):
    """A token. It cannot be shown again, nor revoked by itself: it ends with its time, or with the key that made it."""

    token: str = Field(repr=False)
    expires_at: datetime
    scopes: tuple[str, ...]


class DeliveryList(Wire):
    """The webhooks of a job or a batch, oldest first."""

    deliveries: tuple[DeliveryView, ...]


def _read_time(value: object) -> object:
    """Read a time in RFC 3339 form; pydantic would also accept a number of seconds, even in a string."""
    if isinstance(value, datetime):
        return value
    form = r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)"
    try:
        if isinstance(value, str) and re.fullmatch(form, value, re.ASCII):
            return datetime.fromisoformat(value.upper())
    except ValueError:  # a 13th month
        pass
    raise PydanticCustomError("invalid_time", "Write a time with its UTC offset, as in 2026-01-02T03:00:00Z.")


Time = Annotated[AwareDatetime, BeforeValidator(_read_time)]


class RedeliveryRange(Request):
    """Which webhooks to resend: those created in a time range, both ends included."""

    since: Time = Field(alias="from", examples=["2026-01-02T03:00:00Z"])
    until: Time | None = Field(None, alias="to", description="Default: now.")
    only_failed: bool = Field(
        True, description="Only those refused, given up or not sent to a disabled endpoint; false: delivered ones, too."
    )


class Redeliveries(Wire):
    """The webhooks that are sent again."""

    queued: tuple[str, ...] = Field(description="The webhooks' ids, oldest first.")
    more: bool = Field(description="There may be more than may be queued now: at most 10,000 within an hour.")


class EarlierSecret(Wire):
    """A secret that also signs your webhooks, while another replaces it."""

    secret: str = Field(repr=False)
    signs_until: datetime | None = Field(description="Null: until the service's operator ends it.")


class WebhookSecretView(Wire):
    """The secret that signs your webhooks, and nobody else's. Give it to your receivers only."""

    secret: str = Field(repr=False, description="Verify with this one, as Standard Webhooks specifies.")
    earlier: tuple[EarlierSecret, ...] = Field(
        description="Each webhook also carries these ones' signatures, so that receivers can change at their own pace."
    )

    @property
    def all(self) -> tuple[str, ...]:
        """Every secret that signs now, the current one first: what ``verify_webhook`` takes."""
        return (self.secret, *(one.secret for one in self.earlier))


class SecretRotation(Request):
    """How to replace the secret that signs your webhooks."""

    overlap_s: int = Field(
        24 * 3600,
        ge=0,
        le=7 * 24 * 3600,
        description="For how long the previous secret signs, too. 0: not at all, for a secret that has leaked.",
    )


class PingRequest(Request):
    """Where to send a ping."""

    url: HttpUrl | None = Field(None, description="Default: your default endpoint, used for jobs that name no webhook.")


class PingView(Wire):
    """A ping: a webhook of type `webhook.ping`, with everything that was signed, and the receiver's response."""

    code: Literal["delivered", "not_delivered", "not_sent_yet"] = Field(
        description="`not_sent_yet`: no courier sent it in time; check the delivery later."
    )
    delivery: DeliveryView = Field(description="Its one attempt shows the receiver's response and how long it took.")
    body: str = Field(description="The bytes that were sent and signed, as UTF-8.")
    headers: dict[str, str] | None = Field(
        description="The headers that it was sent with, including the signature; null before its attempt."
    )


class ModelView(Wire):
    """A model that jobs may use."""

    name: str
    default: bool = Field(description="Used by jobs that name no model.")
    ready_workers: int = Field(description="Workers that have it loaded. With 0, jobs wait for one to start.")


class ModelList(Wire):
    """The models, the default first."""

    models: tuple[ModelView, ...]


class Health(Wire):
    """The service is healthy."""

    status: Literal["live", "ready"]
