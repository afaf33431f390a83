"""A job's result: its manifest, and its files through presigned links made on request."""

from __future__ import annotations

import re

from flask import Blueprint, Response
from pydantic import ValidationError

from maskfleet.api.operation import Operation, TakenTokens, operation
from maskfleet.api.responses import json_response
from maskfleet.api.routes.jobs import find_job, job_not_found
from maskfleet.api.services import current_caller, current_services, tenant
from maskfleet.jobs.errors import Conflict, NotFound, RecordUnreadable
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.wire import JOB_ID
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import manifest_key, result_prefix

blueprint = Blueprint("results", __name__)
logger = get_logger()

#: What ``read_manifest`` refuses.
NO_RESULT = {404: ("job_not_found", "result_not_found"), 409: ("job_not_ended", "job_without_result")}


@blueprint.get("/jobs/<job_id>/result")
@operation(
    Operation(
        summary="Get the manifest: a summary of every mask, and every file with a temporary link.",
        scope=Scope.READ,
        responses={200: Manifest},
        problems={**NO_RESULT, 503: ("store_unavailable", "store_misconfigured")},
        tokens=TakenTokens.OF_IMAGE,
    )
)
def show_result(job_id: str) -> Response:
    manifest = read_manifest(job_id)
    store = current_services().store
    linked = tuple(file.model_copy(update={"url": store.link(file.key)}) for file in manifest.files)
    return json_response(manifest.model_copy(update={"files": linked}))


@blueprint.get("/jobs/<job_id>/files/<path:name>")
@operation(
    Operation(
        summary="Get one file of the result, by a redirect to the object store.",
        scope=Scope.READ,
        responses={307: None},
        problems={
            **NO_RESULT,
            404: ("job_not_found", "result_not_found", "file_not_found"),
            503: ("store_unavailable", "store_misconfigured"),
        },
        tokens=TakenTokens.OF_IMAGE,
    )
)
def fetch_file(job_id: str, name: str) -> Response:
    for file in read_manifest(job_id).files:
        if file.name == name:
            return Response(status=307, headers={"Location": current_services().store.link(file.key)})
    raise NotFound("file_not_found", "The result has no file with this name; GET …/result lists them.")


def read_manifest(job_id: str) -> Manifest:
    """Return the result of the tenant's job.  Raises NotFound, Conflict, RecordUnreadable, and as Store does."""
    try:
        record = find_job(job_id)
    except NotFound:
        return _manifest_without_record(job_id)
    if not record.status.ended:
        raise Conflict("job_not_ended", f"The job is {record.status}. Try again when it has ended.")
    if record.status is not Status.SUCCEEDED or record.result is None:
        why = f" ({record.error.code}: {record.error.detail})" if record.error else ""
        raise Conflict("job_without_result", f"The job ended without a result: {record.status}{why}.")
    try:
        manifest = Manifest.model_validate_json(current_services().store.read(record.result.manifest_key))
    except NotFound as error:
        raise NotFound(
            "result_not_found",
            "The result is no longer in the store; results are kept for a limited time. To have it again, send the job "
            "again as a new one, with a new Idempotency-Key: a job that succeeded keeps nothing to be run from.",
        ) from error
    except ValidationError as error:
        raise RecordUnreadable("result") from error
    return _own(manifest, record.tenant, record.id)


def _manifest_without_record(job_id: str) -> Manifest:
    """Return the result of a job of a large batch, whose record is kept for a short time only."""
    if not re.fullmatch(JOB_ID, job_id) or current_caller().image:
        raise job_not_found()
    try:
        body = current_services().store.read(manifest_key(tenant(), job_id))
        return _own(Manifest.model_validate_json(body), tenant(), job_id)
    except NotFound as error:
        raise job_not_found() from error
    except ValidationError as error:
        raise RecordUnreadable("result") from error


def _own(manifest: Manifest, of_tenant: str, job_id: str) -> Manifest:
    # Links are made for what the manifest names; even a forged one must not make them leave the job's own folder.
    folder = f"{result_prefix(of_tenant, job_id)}/"
    if not all(file.key.startswith(folder) for file in manifest.files):
        logger.error("manifest_names_foreign_keys", job_id=job_id)
        raise NotFound("result_not_found", "The result in the store does not belong to this job.")
    return manifest
