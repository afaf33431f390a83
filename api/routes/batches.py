"""Batches: many images submitted and tracked together; each image is a job like any other."""

from __future__ import annotations

from flask import Blueprint, Response

from maskfleet.api.admission import admit_batch, batch_view, find_batch
from maskfleet.api.operation import Operation, idempotency_key_header, operation, submission_problems
from maskfleet.api.request_body import read_batch, read_idempotency_key
from maskfleet.api.request_context import origin
from maskfleet.api.responses import json_response
from maskfleet.api.services import base_url, check_priority, current_services, tenant
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.schema.api import DeliveryList
from maskfleet.jobs.schema.batch import BatchView

blueprint = Blueprint("batches", __name__)


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
            "that also has the scope `jobs:interactive`."
        ),
        takes_batch=True,
        responses={202: BatchView},
        problems=submission_problems({404: ("batch_not_found",), 413: ("batch_too_large",), 422: ("too_many_images",)}),
        headers=(idempotency_key_header("batch", "album-7"),),
    )
)
def send_batch() -> Response:
    key, services = read_idempotency_key(), current_services()
    batch = read_batch(services)
    check_priority(batch.priority)
    admitted = admit_batch(batch, tenant(), key, services, base_url(), origin())
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
