"""Health checks and metrics for monitoring."""

from __future__ import annotations

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from maskfleet.api.operation import Operation, operation
from maskfleet.api.responses import json_response
from maskfleet.api.services import services
from maskfleet.jobs.errors import NotFound, StoreUnavailable
from maskfleet.jobs.schema.api import Health

blueprint = Blueprint("health", __name__)


@blueprint.get("/live")
@operation(Operation(summary="Liveness: this process responds.", scope=None, answers={200: Health}))
def live() -> Response:
    return json_response(Health(status="live"))


@blueprint.get("/ready")
@operation(
    Operation(
        summary="Readiness: the queue and the object store respond as well.",
        scope=None,
        answers={200: Health},
        problems={503: ("queue_unavailable", "store_unavailable")},
    )
)
def ready() -> Response:
    services().ledger.ping()
    try:
        services().store.ping()
    except NotFound as error:  # the bucket is missing, or access is denied
        raise StoreUnavailable("The object store responds, but this service cannot access its bucket.") from error
    return json_response(Health(status="ready"))


@blueprint.get("/metrics")
@operation(Operation(summary="Metrics for Prometheus.", scope=None, answers={200: "text/plain"}))
def metrics() -> Response:
    door = services()
    return Response(door.metrics.exposition(door.settings.model_names), content_type=CONTENT_TYPE_LATEST)
