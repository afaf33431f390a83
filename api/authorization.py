"""The checks before each route: who sent the request, at what rate they may send, and what their key allows.

A route declares the scope that it needs in its ``@operation``; None means that it is open to everyone.  It also
declares which tokens it takes; what a token for one image may do there is in one_image.py.
"""

from __future__ import annotations

import structlog
from flask import Flask, current_app, g, request
from werkzeug.exceptions import NotFound as RouteNotFound

from maskfleet.api.auth import Caller
from maskfleet.api.limits import register_limits
from maskfleet.api.operation import Operation, TakenTokens, operation_of
from maskfleet.api.services import current_services, is_metrics_port
from maskfleet.api.tokens import IN_URL, PREFIX
from maskfleet.jobs.errors import Forbidden, InvalidRequest, Unauthorized

#: What ``metrics_bind`` serves, without a key.
_ON_METRICS_PORT = frozenset({"health.live", "health.ready", "health.metrics"})


def register_authorization(app: Flask) -> None:
    app.before_request(_identify)
    register_limits(app)
    app.before_request(_authorize)


def _identify() -> None:
    g.caller = g.refusal = g.authorization = None
    g.on_metrics_port = is_metrics_port()
    if g.on_metrics_port and request.endpoint not in _ON_METRICS_PORT:
        raise RouteNotFound
    protected = _protected()
    if protected is None:
        return
    try:
        g.authorization = _authorization(protected)
        g.caller = current_services().keys.caller_of(g.authorization)
    except (Unauthorized, InvalidRequest) as refusal:
        g.refusal = refusal
    else:
        structlog.contextvars.bind_contextvars(key_id=g.caller.key_id)
        if g.caller.token is not None:
            structlog.contextvars.bind_contextvars(token_id=g.caller.token.id)


def _authorize() -> None:
    protected = _protected()
    if g.refusal is not None:
        raise g.refusal
    caller: Caller | None = g.caller
    if protected is None or protected.scope is None or caller is None:
        return
    if caller.token is not None:
        _check_takes_token(protected, caller)
    caller.require(protected.scope)


def _protected() -> Operation | None:
    """Return the description of the request's route; None when no key is needed."""
    if request.endpoint is None:  # no such route: rejected with 404
        return None
    if g.on_metrics_port:
        return None
    described = operation_of(current_app.view_functions[request.endpoint])
    return described if described.scope is not None else None


def _authorization(protected: Operation) -> str | None:
    """Return the ``Authorization`` header, or what it would be with the token in the URL, where that is allowed."""
    header, in_url = request.headers.get("Authorization"), request.args.getlist(IN_URL)
    if not in_url:
        return header
    if not protected.token_in_url or header is not None or len(in_url) > 1:
        raise InvalidRequest(
            "token_in_url",
            f"Only a job's event stream takes a token in its URL, once, and then no Authorization header. Send the "
            f"header Authorization: Bearer <token> instead of {IN_URL}. If that was an API key, have it revoked: URLs "
            "are kept by browsers and proxies.",
            status=400,
        )
    # Never an API key, however well it would do: it would be in the logs of proxies.
    if not in_url[0].startswith(PREFIX):
        raise Unauthorized(
            "invalid_token", "A URL may hold a token only, which begins with mft_. Get one from your server."
        )
    return f"Bearer {in_url[0]}"


def _check_takes_token(protected: Operation, caller: Caller) -> None:
    if protected.tokens is TakenTokens.NONE:
        raise Forbidden("token_not_allowed", "This needs the API key itself, not a token made with it.")
    if caller.image and protected.tokens is not TakenTokens.OF_IMAGE:
        raise Forbidden(
            "token_not_allowed",
            "This token is for one image: it can send jobs of that image, follow them, read their results and cancel "
            "them, and nothing else.",
        )
