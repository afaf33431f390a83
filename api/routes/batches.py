"""Batches: many images submitted and tracked together; each image is a job like any other."""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Blueprint, Response

from maskfleet.api.admission import admit_batch, batch_view, find_batch
from maskfleet.api.batch_failures import FailuresQuery, failures_of
from maskfleet.api.batch_sources import admit_batch_source
from maskfleet.api.operation import Operation, idempotency_key_header, operation, submission_problems
from maskfleet.api.request_body import read_batch, read_idempotency_key, read_query
from maskfleet.api.request_context import origin
from maskfleet.api.responses import json_response
from maskfleet.api.services import base_url, check_priority, current_services, tenant
from maskfleet.jobs.errors import Conflict, NotFound
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.ledger.outcomes import Cancel, Deleted
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.api import DeliveryList
from maskfleet.jobs.schema.batch import BatchFailures, BatchView

blueprint = Blueprint("batches", __name__)
logger = get_logger()

_STORE = ("store_unavailable", "store_misconfigured")


@blueprint.post("/batches")
@operation(
    Operation(
        summary="Submit many images as one batch: one job for each, all with the same mode, prompts and params.",
        scope=Scope.WRITE,
        description=(
            "All or nothing: if one image is invalid, or the batch exceeds your quota, no job is recorded. "
            "Each job is like any other, and counts towards your quota. When the last has ended, `batch.completed` is "
            "sent to the webhook, or to your default endpoint. Retrying a job after that reopens the batch; when it "
            "completes again, the event is sent again, under another `webhook-id`. Priority `interactive` needs a key "
            "that also has the scope `jobs:interactive`.\n\n"
            "With `source`, the images are the objects under a prefix or the lines of a manifest in a bucket that the "
            "operator allows, 100,000 and more of them. Their jobs are created little by little, as earlier ones end; "
            "each image or line that cannot become a job counts as failed. In the end their masks are merged into "
            "one COCO dataset. Such jobs cannot be retried one by one, and their records are kept for an hour."
        ),
        takes_batch=True,
        responses={202: BatchView},
        problems=submission_problems(
            {
                404: ("batch_not_found",),
                413: ("batch_too_large",),
                422: ("too_many_images", "source_not_found", "source_forbidden", "invalid_s3_uri"),
                429: ("too_many_batches",),
            }
        ),
        headers=(idempotency_key_header("batch", "album-7"),),
    )
)
def send_batch() -> Response:
    key, services = read_idempotency_key(), current_services()
    batch = read_batch(services)
    check_priority(batch.priority)
    admit = admit_batch if batch.source is None else admit_batch_source
    admitted = admit(batch, tenant(), key, services, base_url(), origin())
    response = json_response(admitted.view, status=202)
    response.headers["Location"] = admitted.view.urls.self
    if admitted.known:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/batches/<batch_id>")
@operation(
    Operation(
        summary="Get a batch: how many of its jobs are in each state, and their ids.",
        scope=Scope.READ,
        responses={200: BatchView},
        problems={404: ("batch_not_found",)},
    )
)
def show_batch(batch_id: str) -> Response:
    view = batch_view(find_batch(batch_id, tenant(), current_services()), current_services(), base_url())
    return json_response(view)


@blueprint.get("/batches/<batch_id>/deliveries")
@operation(
    Operation(
        summary="List the webhooks about the batch's completion, with their delivery attempts; not those of its jobs.",
        scope=Scope.READ,
        responses={200: DeliveryList},
        problems={404: ("batch_not_found",)},
    )
)
def list_batch_deliveries(batch_id: str) -> Response:
    records = current_services().deliveries.of(find_batch(batch_id, tenant(), current_services()).id, tenant())
    listed = DeliveryList(deliveries=tuple(record.view() for record in records))
    return json_response(listed)


@blueprint.post("/batches/<batch_id>/cancel")
@operation(
    Operation(
        summary="Cancel a batch: queued jobs end at once, running ones are asked to stop, no further ones are created.",
        scope=Scope.WRITE,
        responses={202: BatchView},
        problems={404: ("batch_not_found",), 409: ("batch_already_ended",)},
    )
)
def cancel_batch(batch_id: str) -> Response:
    services = current_services()
    batch = find_batch(batch_id, tenant(), services)
    match services.batches.cancel(batch.id, tenant()):
        case Cancel.ENDED:
            raise Conflict("batch_already_ended", "All of the batch's jobs have ended. There is nothing to cancel.")
        case Cancel.UNKNOWN:  # its record has expired since it was read
            raise _not_found()
    named = services.batches.job_ids if batch.source is None else services.batches.open_jobs
    for job_id in named(batch.id):  # a courier cancels what is left if this breaks off
        services.ledger.cancel(job_id, tenant())
    logger.info("batch_cancel", batch_id=batch.id)
    view = batch_view(find_batch(batch_id, tenant(), services), services, base_url())
    return json_response(view, status=202)


@blueprint.delete("/batches/<batch_id>")
@operation(
    Operation(
        summary="Delete a batch that has ended: its jobs, all that they wrote, and what was made of it.",
        scope=Scope.WRITE,
        description="The batch is gone at once; a courier deletes the objects within seconds, or minutes if they are "
        "many. Images stay.",
        responses={204: None},
        problems={404: ("batch_not_found",), 409: ("batch_not_ended",)},
    )
)
def delete_batch(batch_id: str) -> Response:
    services = current_services()
    batch = find_batch(batch_id, tenant(), services)
    match services.batches.begin_deletion(batch.id, tenant()):
        case Deleted.NOT_ENDED:
            raise Conflict("batch_not_ended", "The batch has jobs that have not ended. Cancel it, or wait for its end.")
        case Deleted.UNKNOWN:  # its record has expired since it was read
            raise _not_found()
    logger.info("batch_deletion", batch_id=batch.id)
    return Response(status=204)


@blueprint.get("/batches/<batch_id>/failures")
@operation(
    Operation(
        summary="List the images of a batch that have no result, and why.",
        scope=Scope.READ,
        description="Of a batch from a prefix or a manifest, what failed is listed within seconds, and stays listed "
        "after the job's record has expired. A page may be short, or empty, and have a next one.",
        responses={200: BatchFailures},
        problems={404: ("batch_not_found",), 422: ("invalid_query", "invalid_cursor"), 503: _STORE},
        query=FailuresQuery,
    )
)
def list_failures(batch_id: str) -> Response:
    services, query = current_services(), read_query(FailuresQuery)
    batch = find_batch(batch_id, tenant(), services)
    failures, cursor = failures_of(batch, query.cursor, query.limit, services)
    following = urlencode({"limit": query.limit, "cursor": cursor})
    page = BatchFailures(
        failures=failures,
        next=f"{base_url()}/v1/batches/{batch.id}/failures?{following}" if cursor else None,
        next_cursor=cursor or None,
    )
    return json_response(page)


@blueprint.get("/batches/<batch_id>/files/<name>")
@operation(
    Operation(
        summary="Get a file made of all results of a batch, by a redirect to the object store.",
        scope=Scope.READ,
        description="`coco.json`: all masks as one COCO dataset, if its outputs name `coco`. `outlines.geojson`: their "
        "outlines, if they name `geojson`. `outcomes.jsonl`: a line for each image, with its job and how that ended. "
        "Of a batch from a prefix or a manifest, once it is completed.",
        responses={307: None},
        problems={404: ("batch_not_found", "file_not_found"), 409: ("batch_not_ended",), 503: _STORE},
    )
)
def fetch_batch_file(batch_id: str, name: str) -> Response:
    services = current_services()
    batch = find_batch(batch_id, tenant(), services)
    for file in batch.files:
        if file.name == name:
            return Response(status=307, headers={"Location": services.store.link(file.key)})
    if batch.source is not None and batch.ended_ms is None:
        raise Conflict("batch_not_ended", "The batch is not completed. Its files are made when all jobs have ended.")
    raise NotFound("file_not_found", "The batch has no file with this name; the batch itself lists them.")


def _not_found() -> NotFound:
    return NotFound("batch_not_found", "You have no batch with this id, or its record has expired.")
