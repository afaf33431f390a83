"""Ended jobs: retried, or deleted with all their objects."""

from __future__ import annotations

from flask import Blueprint, Response

from maskfleet.api.admission import over_quota, ring
from maskfleet.api.operation import Operation, operation
from maskfleet.api.routes.jobs import find_job, job_not_found, show
from maskfleet.api.services import base_url, check_priority, current_services, tenant
from maskfleet.jobs.errors import Conflict
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.ledger.outcomes import Deleted, Retried
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.storage import result_prefix

blueprint = Blueprint("retry_delete", __name__)
logger = get_logger()


@blueprint.post("/jobs/<job_id>/retry")
@operation(
    Operation(
        summary="Queue a failed job again, under the same id and with both deadlines restarted.",
        scope=Scope.WRITE,
        responses={202: JobView},
        problems={
            404: ("job_not_found",),
            409: ("job_not_failed", "job_of_batch"),
            429: ("too_many_jobs_in_flight",),
            503: ("record_not_confirmed",),
        },
    )
)
def retry_job(job_id: str) -> Response:
    record, services = find_job(job_id), current_services()
    check_priority(record.summary.priority)
    max_in_flight = services.settings.jobs_in_flight(tenant())
    outcome = services.ledger.retry(
        record.id,
        tenant(),
        start_deadline_s=record.summary.start_deadline_s,
        max_in_flight=max_in_flight,
    )
    match outcome:
        case Retried.NOT_FAILED:
            raise Conflict("job_not_failed", f"The job is {find_job(job_id).status}. Only failed jobs can be retried.")
        case Retried.OF_BATCH:
            raise Conflict(
                "job_of_batch",
                "A job of a batch from a prefix or a manifest is not retried by itself: the batch lists it among its "
                "failures. Send what failed as a new job or batch.",
            )
        case Retried.OVER_QUOTA:
            raise over_quota(max_in_flight)
        case Retried.UNKNOWN:  # its record has expired since it was read
            raise job_not_found()
    logger.info("job_retried", job_id=record.id)
    ring(record.queue, services)
    response = show(find_job(job_id), status=202)
    response.headers["Location"] = f"{base_url()}/v1/jobs/{record.id}"
    return response


@blueprint.delete("/jobs/<job_id>")
@operation(
    Operation(
        summary="Delete an ended job: all objects its attempts wrote, then its record.",
        scope=Scope.WRITE,
        description=(
            "The image stays, since other jobs of yours may use the same upload; the operator's lifecycle rule for the "
            "bucket removes it."
        ),
        responses={204: None},
        problems={404: ("job_not_found",), 409: ("job_not_ended",), 503: ("store_unavailable",)},
    )
)
def delete_job(job_id: str) -> Response:
    record, services = find_job(job_id), current_services()
    match services.ledger.begin_deletion(record.id, tenant()):
        case Deleted.NOT_ENDED:
            raise Conflict("job_not_ended", f"The job is {record.status}. Cancel it, or wait for it to end.")
        case Deleted.UNKNOWN:  # its record has expired since it was read
            raise job_not_found()
    removed = services.store.delete_prefix(f"{result_prefix(record.tenant, record.id)}/")
    services.ledger.delete(record.id, tenant())
    logger.info("job_deleted", job_id=record.id, objects=removed)
    return Response(status=204)
