"""What surrounds every request: its id, its log lines, its metrics, and the security headers for browsers."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from flask import Flask, Response, g, request

from maskfleet.api.services import current_services
from maskfleet.jobs import tracing
from maskfleet.jobs.ledger.outcomes import Origin
from maskfleet.jobs.logs import get_logger

#: Responses are data: a browser that opens one runs and loads nothing.  /docs has its own, wider policy.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
#: How long a browser that came over https uses nothing else: two years, as browsers' preload lists ask for.
HTTPS_ONLY_S = 2 * 365 * 24 * 3600

logger = get_logger()


def register_request_context(app: Flask) -> None:
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(_end_span)


def origin() -> Origin:
    """Return what jobs that are created by this request record of it.

    A caller's trace goes on where this service sends none of its own: its worker may, and the webhook's receiver.
    """
    return Origin(g.request_id, tracing.current().traceparent or _given_traceparent())


def note_wait(seconds: float) -> None:
    """Exclude the time that a request was held on purpose from its metrics."""
    g.waited_s = seconds


def _begin() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", given) else uuid.uuid4().hex
    g.began, g.waited_s = time.monotonic(), 0.0
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(program="api", request_id=g.request_id)
    if request.url_rule is not None and request.url_rule.rule.startswith("/v1/") and request.method != "OPTIONS":
        # The route, not the path, and no query: both may hold what is nobody else's business.
        attributes = {"http.request.method": request.method, "http.route": request.url_rule.rule}
        name = f"{request.method} {request.url_rule.rule}"
        g.span = tracing.span(name, attributes, kind=tracing.Kind.SERVER, of=_given_traceparent()).__enter__()
        g.span.note({"maskfleet.request_id": g.request_id})
        if g.span.traceparent:
            structlog.contextvars.bind_contextvars(trace_id=g.span.traceparent[3:35])


def _given_traceparent() -> str:
    return tracing.read_traceparent(request.headers.get("traceparent", ""))


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if request.is_secure or current_services().settings.public_url.startswith("https://"):
        response.headers["Strict-Transport-Security"] = f"max-age={HTTPS_ONLY_S}"
    response.headers.setdefault("Content-Security-Policy", DATA_POLICY)
    # Responses hold presigned links and states that change; no cache may keep them.
    response.headers.setdefault("Cache-Control", "no-store")
    if "span" in g:
        g.span.note({"http.response.status_code": response.status_code})
        if response.status_code >= 500:
            g.span.fail(str(response.status_code))
    seconds = time.monotonic() - g.began - g.waited_s
    route = request.url_rule.rule if request.url_rule is not None else "unmatched"
    current_services().metrics.count(request.method, route, response.status_code, seconds)
    logger.debug(
        "request_served", method=request.method, route=route, status=response.status_code, ms=round(seconds * 1000, 1)
    )
    return response


def _end_span(_error: BaseException | None = None) -> None:
    if "span" in g:
        g.pop("span").__exit__(None, None, None)
