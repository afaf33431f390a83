"""The errors of talking to a server, as one tree.

ApiError                    code, detail, status, errors: the server's problem document
├── Refused                 4xx: the request must change
│   ├── AuthenticationError          401: no API key, or an unknown one
│   ├── NotFound            404: no such job, upload or file (or another tenant's)
│   └── Conflict          409: the job has not ended yet, or has ended already
├── Unavailable             5xx, or no response at all: the same call may succeed later
├── WaitTimeout           the deadline of a wait passed; the job continues
└── DamagedFile             a downloaded file is not the one in the manifest
WebhookRejected             code, detail: a webhook that is not from the server, or is too old
"""

from __future__ import annotations

import requests
from pydantic import ValidationError

from maskfleet.jobs.errors import FieldFault, InvalidRequest
from maskfleet.jobs.schema.api import Problem


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


class WaitTimeout(ApiError):
    """The job did not end before the deadline.  It continues."""


class DamagedFile(ApiError):
    """A downloaded file's size or sha256 does not match the manifest."""


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


def problem_of(response: requests.Response) -> ApiError:
    """Return the error for the server's problem document, or one for the status if the response has none."""
    kind = _BY_STATUS.get(response.status_code, Unavailable if response.status_code >= 500 else Refused)
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        # An error page of the store or of a proxy.
        address = (response.url or "").partition("?")[0]  # what follows is a signature, if it is a link to the store
        detail = f"{address} responded {response.status_code} {response.reason}, and did not say why."
        return kind(f"http_{response.status_code}", detail, status=response.status_code)
    return kind(problem.code, problem.detail, status=response.status_code, errors=problem.errors or ())


def refused_here(error: InvalidRequest) -> Refused:
    """Return the server's error for a request that was found invalid before it was sent."""
    return Refused(error.code, error.detail, status=error.http_status, errors=error.faults)
