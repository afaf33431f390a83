"""The models that jobs may use."""

from __future__ import annotations

from flask import Blueprint, Response

from maskfleet.api.operation import Operation, operation
from maskfleet.api.responses import json_response
from maskfleet.api.services import current_services
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.schema.api import ModelList, ModelView

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
@operation(Operation(summary="List the models, the default first.", scope=Scope.READ, responses={200: ModelList}))
def list_models() -> Response:
    settings = current_services().settings
    ready_workers = current_services().worker_registry.counts(settings.model_names)
    models = ModelList(
        models=tuple(
            ModelView(name=name, default=name == settings.model_name, ready_workers=ready_workers[name])
            for name in settings.model_names
        )
    )
    return json_response(models)
