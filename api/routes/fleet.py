"""The fleet: what the workers have to do, who they are, and how many there should be."""

from __future__ import annotations

from flask import Blueprint, Response

from maskfleet.api.operation import Operation, operation
from maskfleet.api.request_body import read_query
from maskfleet.api.responses import json_response
from maskfleet.api.services import current_services
from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.fleet import OUTPUTS
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.ledger.workers import WorkerSeen
from maskfleet.jobs.schema.fleet import FleetModelQuery, FleetView, FleetWorker, ModelFleet, WorkerState
from maskfleet.jobs.schema.wire import utc_time

blueprint = Blueprint("fleet", __name__)


@blueprint.get("/fleet")
@operation(
    Operation(
        summary="Show every model's jobs, its workers, and how many it should have.",
        scope=Scope.ADMIN,
        description="It names all tenants' running jobs, by their ids. `outputs` stands for the jobs that need no "
        "model; it is shown while there are such jobs, or workers for them alone.",
        responses={200: FleetView},
    )
)
def show_fleet() -> Response:
    services = current_services()
    rules = services.settings.fleet_rules
    loads = services.fleet.loads((*services.settings.model_names, OUTPUTS), list_jobs=True)
    seen = services.worker_registry.workers(loading=True)
    workers = tuple(_worker(worker, loads.jobs.get(worker.node)) for worker in seen)
    shown = {worker.model for worker in workers} | {load.model for load in loads.models if load.queued or load.running}
    models = tuple(ModelFleet.of(load, rules) for load in loads.models if load.model != OUTPUTS or load.model in shown)
    return json_response(FleetView(models=models, workers=workers))


@blueprint.get("/fleet/model")
@operation(
    Operation(
        summary="Show one model's jobs and workers, and how many workers it should have.",
        scope=Scope.FLEET,
        description="For an autoscaler: `desired_workers` is the number of replicas. In KEDA: the scaler `metrics-api` "
        "with `valueLocation: desired_workers` and `targetValue: '1'`.",
        responses={200: ModelFleet},
        problems={404: ("model_not_found",), 422: ("invalid_query",)},
        query=FleetModelQuery,
    )
)
def show_model() -> Response:
    services = current_services()
    name = read_query(FleetModelQuery).name or services.settings.model_name
    for load in services.loads.get(lambda: services.fleet.loads((*services.settings.model_names, OUTPUTS))).models:
        if load.model == name:
            return json_response(ModelFleet.of(load, services.settings.fleet_rules))
    known = ", ".join(services.settings.model_names)
    raise NotFound("model_not_found", f"No such model: {name}. This service has {known}.")


def _worker(seen: WorkerSeen, job: str | None) -> FleetWorker:
    state = WorkerState(seen.state)
    if seen.state == "ready":
        state = WorkerState.BUSY if job else WorkerState.IDLE
    return FleetWorker(
        node=seen.node,
        model=seen.model,
        device=seen.device,
        state=state,
        job=job,
        since=utc_time(seen.since_ms) if seen.since_ms is not None else None,
        version=seen.version or None,
        seen_s_ago=seen.seen_s_ago,
        jobs=seen.jobs,
        start_s=seen.start_s,
        fault=seen.fault or None,
    )
