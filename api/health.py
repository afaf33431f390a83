"""Health checks and metrics for monitoring."""

from __future__ import annotations

from functools import partial

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from maskfleet.api.operation import Operation, operation
from maskfleet.api.responses import json_response
from maskfleet.api.services import Services, current_services
from maskfleet.jobs.errors import NotFound, QueueUnavailable, StoreMisconfigured
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.schema.api import Health

blueprint = Blueprint("health", __name__)


@blueprint.get("/live")
@operation(Operation(summary="Liveness: this process responds.", scope=None, responses={200: Health}, any_host=True))
def live() -> Response:
    return json_response(Health(status="live"))


@blueprint.get("/ready")
@operation(
    Operation(
        summary="Readiness: the queue accepts writes, and the object store responds, as well.",
        scope=None,
        responses={200: Health},
        problems={503: ("queue_unavailable", "store_unavailable", "store_misconfigured")},
        any_host=True,
    )
)
def ready() -> Response:
    services = current_services()
    services.readiness.get(partial(_check, services))
    return json_response(Health(status="ready"))


def _check(services: Services) -> None:
    try:
        services.epoch.check()
    except QueueUnavailable as error:
        raise QueueUnavailable(f"Redis cannot serve ({error.reason}). {error.detail}", reason=error.reason) from error
    try:
        services.store.ping()
    except NotFound as error:
        raise StoreMisconfigured("its bucket does not exist.") from error


@blueprint.get("/metrics")
@operation(
    Operation(
        summary="Metrics for Prometheus.",
        scope=Scope.ADMIN,
        description="An operator may serve them without a key on a port of their own: `MASKFLEET_METRICS_BIND`.",
        responses={200: "text/plain"},
    )
)
def metrics() -> Response:
    services = current_services()
    settings = services.settings
    found = services.exposition.get(partial(services.metrics.exposition, settings.model_names, settings.fleet_rules))
    return Response(found, content_type=CONTENT_TYPE_LATEST)
