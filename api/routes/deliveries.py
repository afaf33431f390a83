"""Webhook deliveries: their attempts, and redelivery on request.  The courier sends; these routes only queue."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Blueprint, Response
from werkzeug.routing import BaseConverter

from maskfleet.api.operation import Operation, operation
from maskfleet.api.request_body import read_json
from maskfleet.api.responses import json_response
from maskfleet.api.routes.jobs import find_job
from maskfleet.api.services import base_url, current_services, tenant
from maskfleet.jobs.errors import InvalidRequest, NotFound
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.ledger.deliveries import MAX_REDELIVERED, Redelivered
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.api import DeliveryList, Redeliveries, RedeliveryRange
from maskfleet.jobs.schema.delivery import DeliveryRecord, DeliveryView, subject_ids

blueprint = Blueprint("deliveries", __name__)
logger = get_logger()


class MessageId(BaseConverter):
    """A path segment that begins like a webhook's id, so that ``redeliver`` does not match."""

    regex = "msg_[^/]+"


@blueprint.get("/jobs/<job_id>/deliveries")
@operation(
    Operation(
        summary="List a job's webhooks with their delivery attempts: time, duration, first 1 kB of the response.",
        scope=Scope.READ,
        responses={200: DeliveryList},
        problems={404: ("job_not_found",)},
    )
)
def list_deliveries(job_id: str) -> Response:
    records = current_services().deliveries.of(find_job(job_id).id, tenant())
    listed = DeliveryList(deliveries=tuple(record.view() for record in records))
    return json_response(listed)


@blueprint.get("/deliveries/<msg:delivery_id>")
@operation(
    Operation(
        summary="Get one webhook.",
        scope=Scope.READ,
        responses={200: DeliveryView},
        problems={404: ("delivery_not_found",)},
    )
)
def show_delivery(delivery_id: str) -> Response:
    return json_response(find_delivery(delivery_id).view())


@blueprint.post("/deliveries/<msg:delivery_id>/redeliver")
@operation(
    Operation(
        summary="Resend a webhook at once, under the same id and with the same bytes.",
        scope=Scope.WRITE,
        description=(
            "Its schedule starts over. It is sent even to an endpoint that responded 410; a 2xx response enables the "
            "endpoint again. A webhook that is already being sent is left alone."
        ),
        responses={202: DeliveryView},
        problems={404: ("delivery_not_found",), 429: ("too_many_redeliveries",)},
    )
)
def redeliver(delivery_id: str) -> Response:
    if current_services().deliveries.redeliver(delivery_id, tenant()) is Redelivered.UNKNOWN:
        raise _delivery_not_found()
    record = find_delivery(delivery_id)
    logger.info("redelivery_queued", delivery_id=delivery_id, **subject_ids(record.subject))
    return show_queued(record.view())


@blueprint.post("/deliveries/redeliver")
@operation(
    Operation(
        summary="Resend the webhooks of a time range, each under its own id.",
        scope=Scope.WRITE,
        description=(
            f"Oldest first, at most {MAX_REDELIVERED:,} within an hour, single ones included. For use after a receiver "
            "was down for a long time. They wait their turn: a host that is still down, or an endpoint that responded "
            "410, gets none of them; ping it or resend one first. Left out are webhooks that are still to be sent, and "
            "those that such a call has sent again within the last hour."
        ),
        body=RedeliveryRange,
        responses={202: Redeliveries},
        problems={
            400: ("malformed_json",),
            413: ("body_too_large",),
            415: ("unsupported_media_type", "content_encoding_not_supported"),
            422: ("invalid_range",),
            429: ("too_many_redeliveries",),
        },
    )
)
def redeliver_range() -> Response:
    wanted = read_json(RedeliveryRange, "invalid_range")
    until = wanted.until or datetime.now(UTC)
    if wanted.since > until:
        raise InvalidRequest.at(
            "/from", "invalid_range", "The start of the range is after its end.", fault="range_is_empty"
        )
    queued = current_services().deliveries.redeliver_range(
        tenant(), wanted.since, until, only_failed=wanted.only_failed
    )
    logger.info("redeliveries_queued", deliveries=len(queued.ids))
    shown = Redeliveries(queued=queued.ids, more=queued.more)
    return json_response(shown, status=202)


def find_delivery(delivery_id: str) -> DeliveryRecord:
    """Return one of the caller's webhooks.  Raises NotFound (``delivery_not_found``)."""
    record = current_services().deliveries.read(delivery_id, tenant())
    if record is None:
        raise _delivery_not_found()
    return record


def show_queued(view: DeliveryView) -> Response:
    response = json_response(view, status=202)
    response.headers["Location"] = delivery_url(view.id)
    return response


def delivery_url(delivery_id: str) -> str:
    return f"{base_url()}/v1/deliveries/{delivery_id}"


def _delivery_not_found() -> NotFound:
    return NotFound("delivery_not_found", "You have no webhook with this id, or its record has expired.")
