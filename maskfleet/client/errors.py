"""The errors of talking to a server, as one tree.

ApiError                    code, detail, status, errors: the server's problem document
├── Refused                 4xx: the request must change
│   ├── AuthenticationError          401: no API key, or an unknown one
│   ├── NotFound            404: no such job, upload or file (or another tenant's)
│   └── Conflict          409: the job has not ended yet, or has ended already
├── Unavailable             5xx, or no response at all: the same call may succeed later
├── JobFailed               its masks were asked for, but the job failed, was canceled or expired
├── WaitTimeout           the deadline of a wait passed; the job continues
└── DamagedFile             a downloaded file is not the one in the manifest
MissingPackage              a method needs a package that is not installed; the message has the pip command
WebhookRejected             code, detail: a webhook that is not from the server, or is too old
"""

from __future__ import annotations

from pydantic import ValidationError

from maskfleet.jobs.errors import FieldFault, InvalidRequest
from maskfleet.jobs.schema.api import Problem
from maskfleet.jobs.schema.record import JobView


class ApiError(Exception):
    """A call that failed: the stable ``code``, the ``detail`` for people, the HTTP ``status`` (0: no response)."""

    def __init__(self, code: str, detail: str, *, status: int = 0, errors: tuple[FieldFault, ...] = ()) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.status = status
        self.errors = errors


class Refused(ApiError):
    """The request must change; sending it again unchanged cannot help."""


class AuthenticationError(Refused):
    """No API key was given, or the server does not know it."""


class NotFound(Refused):
    """It does not exist, or belongs to another tenant."""


class Conflict(Refused):
    """The job is in the wrong state for this: it has not ended yet, or has already ended."""


class Unavailable(ApiError):
    """The server did not respond, or cannot handle the request now, even after several attempts."""


class JobFailed(ApiError):
    """The job has no masks: it failed, was canceled or expired.  ``job``: as it ended; ``code``: its error's."""

    def __init__(self, job: JobView) -> None:
        if job.error is not None:
            super().__init__(job.error.code, job.error.detail)
        else:
            super().__init__(f"job_{job.status}", f"{job.id} was {job.status}, so it has no masks.")
        self.job = job


class WaitTimeout(ApiError):
    """The job did not end before the deadline.  It continues."""


class DamagedFile(ApiError):
    """A downloaded file's size or sha256 does not match the manifest."""


class MissingPackage(ImportError):
    """A method needs a package that is not installed; the message says how to install it."""


class WebhookRejected(ValueError):
    """A webhook that must not be trusted, or is not understood.

    ``code``: ``missing_header``, ``invalid_timestamp``, ``too_old``, ``too_new``, ``wrong_signature``;
    ``unknown_event`` for a correctly signed body that is not an event.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


_BY_STATUS: dict[int, type[ApiError]] = {401: AuthenticationError, 404: NotFound, 409: Conflict}


def problem_of(url: str, status: int, reason: str, body: bytes) -> ApiError:
    """Return the error for the server's problem document, or one for the status if the body is none."""
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else Refused)
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        # An error page of the store or of a proxy.
        address = url.partition("?")[0]  # what follows is a signature, if it is a link to the store
        return kind(f"http_{status}", f"{address} responded {status} {reason}, and did not say why.", status=status)
    return kind(problem.code, problem.detail, status=status, errors=problem.errors or ())


def refused_here(error: InvalidRequest) -> Refused:
    """Return the server's error for a request that was found invalid before it was sent."""
    return Refused(error.code, error.detail, status=error.http_status, errors=error.faults)


def broken_off(name: str) -> Unavailable:
    """Return the error of a download that was interrupted.  name: the file's."""
    return Unavailable("download_broken_off", f"The download of {name} was interrupted. Fetch it again.")


def check_json(url: str, media_type: str, body: bytes, status: int) -> None:
    """Raise Refused (``not_maskfleet``) for a good response that is no JSON: a page, from another kind of server."""
    if body and "json" not in media_type:
        raise Refused(
            "not_maskfleet",
            f"{url} responded with {media_type.partition(';')[0]} instead of JSON. Is this the address of a maskfleet "
            "server?",
            status=status,
        )


def not_a_stream(status: int) -> Unavailable:
    """Return the error of a response that should have been an event stream."""
    return Unavailable("not_a_stream", f"The server responded {status}, but not with an event stream.")


def stream_interrupted() -> Unavailable:
    """Return the error of an event stream that was interrupted."""
    return Unavailable("no_answer", "The event stream was interrupted.")
