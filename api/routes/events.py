"""A job's event stream: its current state, then its state after each change."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request

from maskfleet.api.long_poll import preferred_wait_s
from maskfleet.api.operation import Header, Operation, TakenTokens, operation
from maskfleet.api.routes.jobs import find_job
from maskfleet.api.services import base_url, current_services, hold_response
from maskfleet.api.streaming import job_events
from maskfleet.jobs.errors import TooManyHeld, TooManyStreams
from maskfleet.jobs.ledger.api_keys import Scope

blueprint = Blueprint("events", __name__)


@blueprint.get("/jobs/<job_id>/events")
@operation(
    Operation(
        summary="Follow a job: its current state, then its state after each change, until it has ended.",
        scope=Scope.READ,
        description=(
            "Server-Sent Events of type `job`: `data` is the job as `GET /v1/jobs/{id}` returns it, `id` a version "
            "that grows with each change. While a job waits, its position in the queue is checked every few seconds, "
            "less often while thousands follow. Comments are sent as heartbeats while nothing happens. The stream ends "
            "after the job's end, when its key is revoked or its token expires, or after a time limit; reconnect with "
            "`Last-Event-ID`, and nothing that you have seen is sent twice. 204: the job has ended and "
            "you have seen its last event."
        ),
        responses={200: "text/event-stream", 204: None},
        problems={404: ("job_not_found",), 429: ("too_many_held",), 503: ("too_many_streams",)},
        headers=(
            Header("Last-Event-ID", "The last `id` that you have received.", "7"),
            Header("Prefer", "`wait=N` ends the stream after at most N seconds.", "wait=60"),
        ),
        tokens=TakenTokens.OF_IMAGE,
        token_in_url=True,
    )
)
def follow_job(job_id: str) -> Response:
    record, seen, services = find_job(job_id), _last_event_id(), current_services()
    if record.status.ended and seen == record.version:
        return Response(status=204)  # by its standard, an EventSource reconnects after any other response
    try:
        hold = hold_response()
    except TooManyHeld as error:
        raise TooManyStreams from error
    wanted_s = preferred_wait_s(request.headers.get("Prefer"))
    seconds = min(services.settings.max_stream_s, wanted_s if wanted_s is not None else services.settings.max_stream_s)
    response = Response(job_events(record, seen, services, base_url(), seconds, hold), mimetype="text/event-stream")
    # Not in the generator: closing one that never started runs none of its code.
    response.call_on_close(hold.release)
    response.headers["X-Accel-Buffering"] = "no"  # nginx would buffer events otherwise
    if wanted_s is not None:
        response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


def _last_event_id() -> int | None:
    given = request.headers.get("Last-Event-ID", "")
    return int(given) if re.fullmatch(r"[0-9]{1,15}", given) else None
