"""Jobs: submit, get, list, cancel."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from maskfleet.api.admission import Admitted, admit_job
from maskfleet.api.inline import view_with_inline
from maskfleet.api.long_poll import Hold, preferred_wait_s
from maskfleet.api.one_image import check_submission, limit_body, may_see, own_idempotency_key
from maskfleet.api.operation import (
    Header,
    Operation,
    TakenTokens,
    idempotency_key_header,
    operation,
    submission_problems,
)
from maskfleet.api.request_body import read_idempotency_key, read_query, read_submission
from maskfleet.api.request_context import note_wait, origin
from maskfleet.api.responses import json_response
from maskfleet.api.services import (
    base_url,
    check_priority,
    current_services,
    give_room_back,
    hold_response,
    tenant,
    view_with_spec,
)
from maskfleet.jobs.errors import Conflict, InvalidRequest, NotFound, QueueUnavailable
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.ledger.outcomes import Cancel, Place
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.queue import served_by
from maskfleet.jobs.schema.api import JobPage, JobQuery
from maskfleet.jobs.schema.record import JobRecord, JobView
from maskfleet.jobs.schema.wire import JOB_ID
from maskfleet.jobs.status import Status

blueprint = Blueprint("jobs", __name__)
logger = get_logger()


@blueprint.post("/jobs")
@operation(
    Operation(
        summary="Submit a job: one image, one mode; and wait for its end, if you like.",
        scope=Scope.WRITE,
        description=(
            "Priority `interactive` needs a key that also has the scope `jobs:interactive`. With `Prefer: wait=N`, the "
            "response is held until the job ends: 200, with the ended job. 202: it has not ended yet."
        ),
        takes_job=True,
        responses={200: JobView, 202: JobView},
        problems=submission_problems(
            {
                403: ("image_not_allowed",),
                404: ("job_not_found",),
                413: ("malformed_multipart",),
                422: ("malformed_multipart",),
                429: ("too_many_held",),
                503: ("too_many_held",),
            }
        ),
        headers=(
            idempotency_key_header("job", "order-42"),
            Header(
                "Prefer",
                "`wait=N` holds the response until the job ends, for at most N seconds. When no more responses can be "
                "held, the job is refused, and not recorded.",
                "wait=30",
            ),
        ),
        tokens=TakenTokens.OF_IMAGE,
    )
)
def send_job() -> Response:
    return answer_when_ended(_read_job())


def _read_job() -> Callable[[], Admitted[JobView]]:
    """Read the request, and return what records its job; nothing else holds the image, of up to max_image_bytes."""
    services = current_services()
    key = own_idempotency_key(read_idempotency_key())
    limit_body()
    submission = read_submission(services)
    check_submission(submission)
    check_priority(submission.spec.priority)
    return partial(admit_job, submission, tenant(), key, services, base_url(), origin())


def answer_when_ended(admit: Callable[[], Admitted[JobView]]) -> Response:
    """Record a job and show it: once it has ended, if ``Prefer`` asks to wait.  admit: is let go of before."""
    services, wait_s = current_services(), granted_wait_s()
    # First the place, then the job: one that is refused has recorded nothing.
    with held() if wait_s else nullcontext() as hold:
        admitted = admit()
        del admit
        view, ended = admitted.view, False
        if hold is not None:
            wait_for_end(view.id, hold, wait_s)
            try:
                record = find_job(view.id)
            except QueueUnavailable:
                pass  # it was recorded: the caller must learn its id
            else:
                view, ended = view_with_inline(record, services), record.status.ended
    response = json_response(view, status=200 if ended else 202)
    response.headers["Location"] = view.urls.self
    if hold is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    if admitted.known:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/jobs/<job_id>")
@operation(
    Operation(
        summary="Get a job, with its masks if it asked for them to be inline.",
        scope=Scope.READ,
        responses={200: JobView},
        problems={404: ("job_not_found",), 429: ("too_many_held",), 503: ("too_many_held",)},
        headers=(
            Header("Prefer", "`wait=N` holds the response until the job ends, for at most N seconds.", "wait=30"),
        ),
        tokens=TakenTokens.OF_IMAGE,
    )
)
def show_job(job_id: str) -> Response:
    record = find_job(job_id)
    wait_s = 0 if record.status.ended else granted_wait_s()
    if wait_s:
        with held() as hold:
            wait_for_end(record.id, hold, wait_s)
        record = find_job(job_id)
    response = json_response(view_with_inline(record, current_services()))
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return response


@blueprint.get("/jobs")
@operation(
    Operation(
        summary="List your jobs, newest first.",
        scope=Scope.READ,
        responses={200: JobPage},
        problems={422: ("invalid_query", "invalid_cursor")},
        query=JobQuery,
    )
)
def list_jobs() -> Response:
    query = read_query(JobQuery)
    after = _read_cursor(query.cursor) if query.cursor else None
    found = current_services().ledger.page_of(tenant(), after=after, limit=query.limit, status=query.status)
    cursor = _write_cursor(found.next) if found.next else None
    following = {**query.model_dump(mode="json", exclude_none=True), "cursor": cursor}
    page = JobPage(
        jobs=_listed(found.records),
        next=f"{base_url()}/v1/jobs?{urlencode(following)}" if cursor else None,
        next_cursor=cursor,
    )
    return json_response(page)


@blueprint.post("/jobs/<job_id>/cancel")
@operation(
    Operation(
        summary="Cancel a job: at once if it is queued (200); otherwise its worker is asked to stop (202).",
        scope=Scope.WRITE,
        responses={200: JobView, 202: JobView},
        problems={404: ("job_not_found",), 409: ("job_already_ended",)},
        tokens=TakenTokens.OF_IMAGE,
    )
)
def cancel_job(job_id: str) -> Response:
    record = find_job(job_id)
    outcome = current_services().ledger.cancel(record.id, tenant())
    if outcome is Cancel.ENDED:
        raise Conflict(
            "job_already_ended", f"The job is already {find_job(job_id).status}. There is nothing to cancel."
        )
    if outcome is Cancel.UNKNOWN:  # its record has expired since it was read
        raise job_not_found()
    logger.info("job_cancel", job_id=record.id, outcome=outcome)
    return show(find_job(job_id), status=200 if outcome is Cancel.CANCELED else 202)


def find_job(job_id: str) -> JobRecord:
    """Return the tenant's job.  Another tenant's job looks exactly like one that does not exist.

    To a token for one image, so does another image's job.
    """
    record = current_services().ledger.read(job_id) if re.fullmatch(JOB_ID, job_id) else None
    if record is None or record.tenant != tenant() or not may_see(record):
        raise job_not_found()
    return record


def job_not_found() -> NotFound:
    return NotFound("job_not_found", "You have no job with this id, or its record has expired.")


def show(record: JobRecord, *, status: int = 200) -> Response:
    return json_response(view_with_spec(record, current_services(), base_url()), status=status)


def _listed(records: tuple[JobRecord, ...]) -> tuple[JobView, ...]:
    """Return the views of jobs, without their attempts."""
    services = current_services()
    default = services.settings.model_name
    served = {
        record.id: served_by(record.queue, record.summary.model or default)
        for record in records
        if record.status is Status.QUEUED
    }
    workers = services.worker_registry.counts(tuple(set(served.values()))) if served else {}
    return tuple(
        record.view(
            default,
            base_url(),
            services.places.of(record, workers[served[record.id]]) if record.id in served else None,
        )
        for record in records
    )


def granted_wait_s() -> int:
    """Return for how long the response is held, as ``Prefer`` asks; 0 for not at all."""
    wanted_s = preferred_wait_s(request.headers.get("Prefer"))
    return min(wanted_s or 0, current_services().settings.max_wait_s)


@contextmanager
def held() -> Iterator[Hold]:
    """Hold the response meanwhile.  Raises HoldQuota, TooManyHeld."""
    hold = hold_response()
    try:
        yield hold
    finally:
        hold.release()


def wait_for_end(job_id: str, hold: Hold, wait_s: int) -> None:
    """Wait for the job's end.  The room that the request's body took is given back first."""
    give_room_back()
    began = time.monotonic()
    current_services().waits.until_ended(job_id, hold, wait_s)
    note_wait(time.monotonic() - began)


def _write_cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(f"{place[0]}:{place[1]}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> Place:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    found = re.fullmatch(rf"([0-9]{{1,15}}):({JOB_ID})", text)
    if found is None:
        raise InvalidRequest("invalid_cursor", "The cursor is not one that this service issued. Start without one.")
    return int(found[1]), found[2]
