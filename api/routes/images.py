"""Images that are encoded before they are needed, so that a click on one is answered soon."""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress

from flask import Blueprint, Response

from maskfleet.api.admission import admit_job
from maskfleet.api.operation import Header, Operation, idempotency_key_header, operation, submission_problems
from maskfleet.api.request_body import read_idempotency_key, read_image
from maskfleet.api.request_context import origin
from maskfleet.api.responses import json_response
from maskfleet.api.routes.jobs import granted_wait_s, held, wait_for_end
from maskfleet.api.services import (
    base_url,
    check_priority,
    current_services,
    give_room_back,
    tenant,
    whole_view,
)
from maskfleet.jobs.errors import Conflict, NotFound, QueueUnavailable
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.ledger.outcomes import Deleted
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.image import ImageView, content_name, source_name
from maskfleet.jobs.schema.record import JobRecord, JobView
from maskfleet.jobs.schema.spec import job_id_of
from maskfleet.jobs.schema.wire import IMAGE_ID
from maskfleet.jobs.storage import delete_known_image, result_prefix

blueprint = Blueprint("images", __name__)
logger = get_logger()

_PREFER = Header("Prefer", "`wait=N` holds the response until the image is encoded, for at most N seconds.", "wait=30")
_HELD = {429: ("too_many_held",), 503: ("too_many_held",)}


@blueprint.post("/images")
@operation(
    Operation(
        summary="Make an image known: it is encoded now, so that jobs which name it by its image_id start at once.",
        scope=Scope.WRITE,
        description=(
            "It is a job of mode `embed`: it counts and waits like any other, and has its own webhooks. Jobs may name "
            "the image before it is encoded. With `Prefer: wait=N`, the response is held until it is: 200; 202: it is "
            "not yet."
        ),
        takes_image=True,
        responses={200: ImageView, 202: ImageView},
        problems=submission_problems(
            {404: ("image_not_known",), 413: ("malformed_multipart",), 422: ("malformed_multipart",), **_HELD}
        ),
        headers=(idempotency_key_header("image", "photo-42"), _PREFER),
    )
)
def send_image() -> Response:
    services = current_services()
    key = read_idempotency_key()
    submission = read_image(services)
    check_priority(submission.spec.priority)
    wait_s = granted_wait_s()
    # First the place, then the job: one that is refused has recorded nothing.
    with held() if wait_s else nullcontext() as hold:
        admitted = admit_job(submission, tenant(), key, services, base_url(), origin())
        image = _view(admitted.view)
        if hold is not None:
            del submission  # up to max_image_bytes
            give_room_back()
            wait_for_end(image.job_id, hold, wait_s)
            with suppress(QueueUnavailable):  # it was recorded: the caller must learn its id
                image = _view(whole_view(_find_image(image.image_id), services, base_url()))
    response = json_response(image, status=200 if image.ended else 202)
    response.headers["Location"] = image.urls.self
    if hold is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    if admitted.known:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/images/<image_id>")
@operation(
    Operation(
        summary="Get an image: whether it is encoded, its size, and until when jobs may name it.",
        scope=Scope.READ,
        responses={200: ImageView},
        problems={404: ("image_not_known",), **_HELD},
        headers=(_PREFER,),
    )
)
def show_image(image_id: str) -> Response:
    record = _find_image(image_id)
    wait_s = 0 if record.status.ended else granted_wait_s()
    if wait_s:
        with held() as hold:
            wait_for_end(record.id, hold, wait_s)
        record = _find_image(image_id)
    response = json_response(_view(whole_view(record, current_services(), base_url())))
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return response


@blueprint.delete("/images/<image_id>")
@operation(
    Operation(
        summary="Forget an image: delete its embeddings of every model, and the record of its id.",
        scope=Scope.WRITE,
        description=(
            "Workers may have the embedding in their memory for a while, where only your own jobs on the same image "
            "find it. What was uploaded stays, as with `DELETE /v1/jobs/{job_id}`."
        ),
        responses={204: None},
        problems={404: ("image_not_known",), 409: ("job_not_ended",), 503: ("store_unavailable",)},
    )
)
def delete_image(image_id: str) -> Response:
    record, services = _find_image(image_id), current_services()
    match services.ledger.begin_deletion(record.id, tenant()):
        case Deleted.NOT_ENDED:
            raise Conflict("job_not_ended", f"Its job is {record.status}. Cancel {record.id}, or wait for it to end.")
        case Deleted.UNKNOWN:  # its record has expired since it was read
            raise _image_not_known()
    removed = 0
    if record.result is not None and record.result.image is not None:
        sha256, source = record.result.image.sha256, record.summary.source
        names = (content_name(sha256), source_name(source) if source else None)
        removed = delete_known_image(services.store, tenant(), filter(None, names), sha256)
    removed += services.store.delete_prefix(f"{result_prefix(record.tenant, record.id)}/")
    services.ledger.delete(record.id, tenant())
    logger.info("image_deleted", job_id=record.id, objects=removed)
    return Response(status=204)


def _find_image(image_id: str) -> JobRecord:
    """Return the job that encodes the tenant's image.  Another tenant's looks exactly like one that does not exist."""
    record = current_services().ledger.read(job_id_of(image_id)) if re.fullmatch(IMAGE_ID, image_id) else None
    if record is None or record.tenant != tenant() or record.summary.mode != "embed":
        raise _image_not_known()
    return record


def _image_not_known() -> NotFound:
    return NotFound("image_not_known", "You have no image with this id, or its record has expired.")


def _view(job: JobView) -> ImageView:
    return ImageView.of(job, base_url(), current_services().settings.retention_s)
