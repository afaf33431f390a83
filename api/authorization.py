"""The checks before each route: who sent the request, at what rate they may send, and what their key allows.

A route declares the scope that it needs in its ``@operation``; None means that it is open to everyone.
"""

from __future__ import annotations

import structlog
from flask import Flask, current_app, g, request
from werkzeug.exceptions import NotFound as RouteNotFound

from maskfleet.api.auth import Caller
from maskfleet.api.limits import register_limits
from maskfleet.api.operation import operation_of
from maskfleet.api.services import current_services, is_metrics_port
from maskfleet.jobs.errors import Unauthorized
from maskfleet.jobs.ledger.api_keys import Scope

#: What ``metrics_bind`` serves, without a key.
_ON_METRICS_PORT = frozenset({"health.live", "health.ready", "health.metrics"})


def register_authorization(app: Flask) -> None:
    app.before_request(_identify)
    register_limits(app)
    app.before_request(_authorize)


def _identify() -> None:
    g.caller = g.refusal = None
    g.on_metrics_port = is_metrics_port()
    if g.on_metrics_port and request.endpoint not in _ON_METRICS_PORT:
        raise RouteNotFound
    if _needed_scope() is None:
        return
    try:
        g.caller = current_services().keys.caller_of(request.headers.get("Authorization"))
    except Unauthorized as refusal:
        g.refusal = refusal
    else:
        structlog.contextvars.bind_contextvars(key_id=g.caller.key_id)


def _authorize() -> None:
    scope = _needed_scope()
    if g.refusal is not None:
        raise g.refusal
    caller: Caller | None = g.caller
    if scope is not None and caller is not None:
        caller.require(scope)


def _needed_scope() -> Scope | None:
    if request.endpoint is None:  # no such route: rejected with 404
        return None
    if g.on_metrics_port:
        return None
    return operation_of(current_app.view_functions[request.endpoint]).scope
