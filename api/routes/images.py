"""Images that are encoded before they are needed, so that a click on one is answered soon."""

from __future__ import annotations

import re

from flask import Blueprint, Response

from maskfleet.api.admission import admit_job
from maskfleet.api.operation import Header, Operation, idempotency_key_header, operation, submission_problems
from maskfleet.api.request_body import read_idempotency_key, read_image
from maskfleet.api.responses import json_response
from maskfleet.api.routes.jobs import wait_as_preferred
from maskfleet.api.services import base_url, check_priority, current_services, tenant, whole_view
from maskfleet.jobs.errors import Conflict, NotFound
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
            "the image before it is encoded."
        ),
        takes_image=True,
        responses={202: ImageView},
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
    admitted = admit_job(submission, tenant(), key, services, base_url())
    response = _shown_when_preferred(admitted.view, status=202)
    response.headers["Location"] = _view(admitted.view).urls.self
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
    return _shown_when_preferred(whole_view(_find_image(image_id), current_services(), base_url()))


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


def _shown_when_preferred(job: JobView, *, status: int = 200) -> Response:
    """Show an image, held until its job has ended if ``Prefer`` asks for that."""
    waited_s = None if job.ended else wait_as_preferred(job.id)
    if waited_s is None:
        return json_response(_view(job), status=status)
    services = current_services()
    record = services.ledger.read(job.id)
    if record is None:
        raise _image_not_known()
    response = json_response(_view(whole_view(record, services, base_url())), status=status)
    response.headers["Preference-Applied"] = f"wait={waited_s}"
    return response


def _view(job: JobView) -> ImageView:
    return ImageView.of(job, base_url(), current_services().settings.retention_s)
