"""For a receiver's owner: the secret to verify webhooks with, and pings, which are test webhooks sent on request."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from flask import Blueprint, Response, request

from maskfleet.api.long_poll import Hold, preferred_wait_s
from maskfleet.api.operation import Header, Operation, operation
from maskfleet.api.request_body import read_json
from maskfleet.api.request_context import note_wait
from maskfleet.api.responses import json_response
from maskfleet.api.routes.deliveries import delivery_url, find_delivery
from maskfleet.api.services import current_services, hold_response, tenant
from maskfleet.api.sources import check_address
from maskfleet.jobs.errors import InvalidRequest, NotFound
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.api import EarlierSecret, PingRequest, PingView, SecretRotation, WebhookSecretView
from maskfleet.jobs.schema.delivery import DeliveryRecord, DeliveryState
from maskfleet.jobs.schema.events import Ping, PingData

#: The wait without a ``Prefer`` header: a courier's poll, its time limit for one attempt, and some slack.
USUAL_WAIT_S = 20

blueprint = Blueprint("webhooks", __name__)
logger = get_logger()


@blueprint.post("/webhooks/ping")
@operation(
    Operation(
        summary="Send a signed test event, and see the bytes and headers that were sent and the receiver's response.",
        scope=Scope.WRITE,
        description=(
            "A courier sends it once, as it sends all webhooks; the response is held until then. 202: no courier sent "
            "it in time, `code` is `not_sent_yet`, and `Location` is where its attempt will be listed. A 2xx response "
            "from the receiver enables an endpoint that was disabled by a 410."
        ),
        body=PingRequest,
        responses={200: PingView, 202: PingView},
        problems={
            400: ("malformed_json",),
            413: ("body_too_large",),
            415: ("unsupported_media_type", "content_encoding_not_supported"),
            422: ("invalid_ping", "url_not_allowed"),
            429: ("too_many_held",),
            503: ("too_many_held",),
        },
        headers=(
            Header("Prefer", f"`wait=N` holds the response for at most N seconds. Default: {USUAL_WAIT_S}.", "wait=30"),
        ),
    )
)
def ping() -> Response:
    services = current_services()
    default = services.settings.default_webhook(tenant())
    url = read_json(PingRequest, "invalid_ping").url or (default.url if default else None)
    if url is None:
        raise InvalidRequest.at(
            "/url", "invalid_ping", "You have no default endpoint here; give the URL to ping.", fault="no_endpoint"
        )
    check_address("/url", url, services.settings)
    body = Ping(timestamp=datetime.now(UTC), data=PingData(url=url)).model_dump_json()
    # First the place, then the ping: one that is refused has sent nothing.
    hold = hold_response()
    try:
        delivery_id = services.deliveries.ping(tenant(), url, body)
        logger.info("ping_queued", delivery_id=delivery_id)
        record = _wait(delivery_id, hold)
    finally:
        hold.release()
    last = record.tries[-1] if record.tries else None
    waiting = record.state is DeliveryState.WAITING
    delivered = record.state is DeliveryState.DELIVERED
    view = PingView(
        code="not_sent_yet" if waiting else "delivered" if delivered else "not_delivered",
        delivery=record.view(),
        body=body,
        headers=last.headers if last else None,
    )
    response = json_response(view, status=202 if waiting else 200)
    if waiting:
        response.headers["Location"] = delivery_url(delivery_id)
    return response


@blueprint.get("/webhooks/secret")
@operation(
    Operation(
        summary="Get the secret that signs your webhooks.",
        scope=Scope.WEBHOOK_SECRET,
        description=(
            "Standard Webhooks' libraries verify with it. Every tenant has its own; whoever knows it can sign webhooks "
            "that your receivers believe."
        ),
        responses={200: WebhookSecretView},
        problems={404: ("no_webhook_secret",)},
    )
)
def show_secret() -> Response:
    return json_response(_secret())


@blueprint.post("/webhooks/secret/rotate")
@operation(
    Operation(
        summary="Replace the secret that signs your webhooks.",
        scope=Scope.WEBHOOK_SECRET,
        description=(
            "For `overlap_s`, every webhook carries the signatures of both, so that receivers can change in their own "
            "time. Rotate with 0 when a secret has leaked."
        ),
        body=SecretRotation,
        responses={200: WebhookSecretView},
        problems={
            400: ("malformed_json",),
            404: ("no_webhook_secret",),
            409: ("too_many_secrets",),
            413: ("body_too_large",),
            415: ("unsupported_media_type", "content_encoding_not_supported"),
            422: ("invalid_rotation",),
        },
    )
)
def rotate_secret() -> Response:
    overlap_s = read_json(SecretRotation, "invalid_rotation").overlap_s
    _secret()  # raises if there is none
    current_services().webhook_secrets.rotate(tenant(), overlap_s)
    logger.info("webhook_secret_rotated", tenant=tenant(), overlap_s=overlap_s)
    return json_response(_secret())


def _secret() -> WebhookSecretView:
    """Return the caller's secret.  Raises NotFound (``no_webhook_secret``)."""
    secrets = current_services().webhook_secrets.of(tenant())
    if not secrets:
        raise NotFound(
            "no_webhook_secret",
            "This API was not given MASKFLEET_WEBHOOK_MASTER_SECRETS, which the couriers sign with. Ask its operator.",
        )
    current, *earlier = secrets
    return WebhookSecretView(
        secret=current.text,
        earlier=tuple(EarlierSecret(secret=one.text, signs_until=one.until) for one in earlier),
    )


def _wait(delivery_id: str, hold: Hold) -> DeliveryRecord:
    """Hold the response until the ping's attempt is recorded, or the time is up."""
    services = current_services()
    wanted_s = preferred_wait_s(request.headers.get("Prefer"))
    granted_s = min(USUAL_WAIT_S if wanted_s is None else wanted_s, services.settings.max_wait_s)
    if granted_s > 0:
        began = time.monotonic()
        services.waits.until(lambda: find_delivery(delivery_id).state is not DeliveryState.WAITING, hold, granted_s)
        note_wait(time.monotonic() - began)
    return find_delivery(delivery_id)
