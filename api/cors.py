"""CORS: no page of another origin may call the API from a browser, unless the operator lists its origin.

Keys travel in a header that a page sets itself, never in cookies, so credentials are not allowed.
Source: the Fetch standard, section "HTTP CORS protocol".
"""

from __future__ import annotations

from flask import Flask, Response, request

from maskfleet.api.services import current_services

_METHODS = "GET, POST, DELETE"
_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-Request-Id"
_RESPONSE_HEADERS = (
    "Idempotency-Replayed, Location, Preference-Applied, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, "
    "Retry-After, X-Request-Id"
)
#: How long a browser may cache a preflight response; the longest that Chromium accepts.
_REMEMBERED_S = 7200


def register_cors(app: Flask) -> None:
    """Register the CORS hooks.  Call before those for API keys: a browser sends no key with a preflight request."""
    app.before_request(_preflight_response)
    app.after_request(_allow)


def _preflight_response() -> Response | None:
    if request.method != "OPTIONS" or not _allowed() or "Access-Control-Request-Method" not in request.headers:
        return None
    response = Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = _METHODS
    response.headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
    response.headers["Access-Control-Max-Age"] = str(_REMEMBERED_S)
    return response


def _allow(response: Response) -> Response:
    if current_services().settings.cors_origins:
        response.vary.add("Origin")
    if _allowed():
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _RESPONSE_HEADERS
    return response


def _allowed() -> bool:
    return request.headers.get("Origin") in current_services().settings.cors_origins
