"""The OpenAPI description of a route, written next to the route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ParamSpec, TypeVar

from pydantic import BaseModel

from maskfleet.api.request_body import IDEMPOTENCY_KEY
from maskfleet.jobs.ledger.api_keys import Scope

P = ParamSpec("P")
R = TypeVar("R")

_MARK = "maskfleet_operation"
#: The error codes, by status, that both routes for new jobs may return.
_SUBMISSION_PROBLEMS: dict[int, tuple[str, ...]] = {
    400: ("malformed_json", "invalid_idempotency_key"),
    403: ("bucket_not_allowed",),
    404: ("upload_not_found",),
    413: ("body_too_large", "spec_too_large", "image_file_too_large"),
    415: ("unsupported_media_type", "content_encoding_not_supported"),
    422: (
        "invalid_spec",
        "image_not_known",
        "unknown_model",
        "image_empty",
        "not_an_image",
        "image_truncated",
        "image_too_large",
        "point_outside_image",
        "box_outside_image",
        "mask_input_not_found",
        "url_not_allowed",
        "idempotency_key_reused",
    ),
    429: ("too_many_jobs_in_flight", "over_quota", "too_many_upload_bytes", "too_many_bytes"),
    503: (
        "store_unavailable",
        "store_misconfigured",
        "record_not_confirmed",
        "backlog_full",
        "ledger_version",
        "too_many_bytes",
    ),
}


@dataclass(frozen=True, slots=True)
class Header:
    """A request header.  pattern: a regular expression that it must match; empty for any text."""

    name: str
    description: str
    example: str
    pattern: str = ""


class TakenTokens(StrEnum):
    """Which tokens a route takes in the place of an API key."""

    NONE = "none"
    #: Those for all of a tenant's jobs.
    OF_TENANT = "of_tenant"
    #: Those for one image as well; the route itself keeps to that image (one_image.py).
    OF_IMAGE = "of_image"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route.

    scope: the scope that a key needs; None: no key is needed.
    responses: the model of each success status; None for no JSON body, a media type for another kind of body.
    problems: the codes of each error status, in addition to those that every route may return.
    body: the model of a JSON body; ``takes_job``, ``takes_image`` and ``takes_batch`` are for the routes whose body is
    one of those.
    any_host: whether it is answered whatever the Host header says.
    tokens: which tokens it takes.  token_in_url: whether it also takes one in the query parameter ``access_token``.
    """

    summary: str
    scope: Scope | None
    responses: Mapping[int, type[BaseModel] | str | None]
    problems: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    body: type[BaseModel] | None = None
    takes_job: bool = False
    takes_image: bool = False
    takes_batch: bool = False
    query: type[BaseModel] | None = None
    headers: tuple[Header, ...] = ()
    description: str = ""
    any_host: bool = False
    tokens: TakenTokens = TakenTokens.OF_TENANT
    token_in_url: bool = False


def submission_problems(own: Mapping[int, tuple[str, ...]]) -> Mapping[int, tuple[str, ...]]:
    """Return the problems of a route for new jobs.  own: those of this route alone."""
    return {status: (*codes, *own.get(status, ())) for status, codes in _SUBMISSION_PROBLEMS.items()}


def idempotency_key_header(made: str, example: str) -> Header:
    """Describe the ``Idempotency-Key`` header.  made: what the route creates, a job or a batch."""
    description = f"Repeating a key with the same body returns the same {made}, for a day by default."
    return Header("Idempotency-Key", description, example, f"^{IDEMPOTENCY_KEY}$")


def operation(described: Operation) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Describe a view function."""

    def mark(view: Callable[P, R]) -> Callable[P, R]:
        setattr(view, _MARK, described)
        return view

    return mark


def operation_of(view: Callable[..., object]) -> Operation:
    """Return a view function's description.  Raises LookupError when it has none."""
    described = getattr(view, _MARK, None)
    if not isinstance(described, Operation):
        raise LookupError(f"{view.__module__}.{view.__qualname__} lacks its @operation.")
    return described
