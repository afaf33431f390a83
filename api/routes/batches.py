"""Batches: many images sent at once, looked at as one; each image is a job like any other."""

from __future__ import annotations

from flask import Blueprint, Response

from api.batch_admission import admit_batch, batch_view, find_batch
from api.intake import IDEMPOTENCY_KEY, read_batch, read_idempotency_key
from api.keys import Scope
from api.operation import Header, Operation, operation
from api.services import base_url, services, tenant
from jobs.answers import DeliveryList
from jobs.batch import BatchRecord, BatchView

blueprint = Blueprint("batches", __name__)


@blueprint.post("/batches")
@operation(
    Operation(
        summary="Send many images as one batch: one job for each, all with the same mode, prompts and params.",
        scope=Scope.WRITE,
        description=(
            "All or nothing: with one image at fault, or more jobs than your quota has room for, none is recorded. "
            "Each job is like any other, and counts as one. When the last has ended, `batch.completed` is sent to "
            "the webhook, or to your default endpoint. A job that is retried after that opens the batch again; its "
            "next end is told anew, under another `webhook-id`."
        ),
        takes_batch=True,
        answers={202: BatchView},
        problems={
            400: ("malformed_json", "invalid_idempotency_key"),
            403: ("bucket_not_allowed",),
            404: ("upload_not_found", "batch_not_found"),
            413: ("body_too_large", "spec_too_large", "batch_too_large", "image_file_too_large"),
            415: ("unsupported_media_type",),
            422: (
                "invalid_spec",
                "too_many_images",
                "unknown_model",
                "image_empty",
                "not_an_image",
                "image_truncated",
                "image_too_large",
                "point_outside_image",
                "box_outside_image",
                "mask_input_not_found",
                "url_not_allowed",
                "idempotency_key_reused",
            ),
            429: ("too_many_jobs_in_flight",),
            503: ("store_unavailable", "backlog_full"),
        },
        headers=(
            Header(
                "Idempotency-Key",
                "The same key and body give the same batch, for a day.",
                "album-7",
                f"^{IDEMPOTENCY_KEY}$",
            ),
        ),
    )
)
def send_batch() -> Response:
    key = read_idempotency_key()
    admitted = admit_batch(read_batch(), tenant(), key, services(), base_url())
    answer = Response(admitted.view.model_dump_json(), status=202, mimetype="application/json")
    answer.headers["Location"] = admitted.view.urls.self
    if admitted.known:
        answer.headers["Idempotency-Replayed"] = "true"
    return answer


@blueprint.get("/batches/<batch_id>")
@operation(
    Operation(
        summary="Look at a batch: how many of its jobs are in each state, and their ids.",
        scope=Scope.READ,
        answers={200: BatchView},
        problems={404: ("batch_not_found",)},
    )
)
def show_batch(batch_id: str) -> Response:
    view = batch_view(_find(batch_id), services(), base_url())
    return Response(view.model_dump_json(), mimetype="application/json")


@blueprint.get("/batches/<batch_id>/deliveries")
@operation(
    Operation(
        summary="The webhooks that tell of the batch's end, with each try. Those of its jobs are with the jobs.",
        scope=Scope.READ,
        answers={200: DeliveryList},
        problems={404: ("batch_not_found",)},
    )
)
def list_batch_deliveries(batch_id: str) -> Response:
    records = services().deliveries.of(_find(batch_id).id, tenant())
    listed = DeliveryList(deliveries=tuple(record.view() for record in records))
    return Response(listed.model_dump_json(), mimetype="application/json")


def _find(batch_id: str) -> BatchRecord:
    return find_batch(batch_id, tenant(), services())
