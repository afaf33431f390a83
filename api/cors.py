"""CORS: no page of another origin may call the API from a browser, unless the operator lists its origin.

Keys travel in a header that a page sets itself, never in cookies, so credentials are not allowed.
Source: the Fetch standard, section "HTTP CORS protocol".
"""

from __future__ import annotations

from flask import Flask, Response, request

from maskfleet.api.services import services

_METHODS = "GET, POST, DELETE"
_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-Request-Id"
_ANSWER_HEADERS = (
    "Idempotency-Replayed, Location, Preference-Applied, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, "
    "Retry-After, X-Request-Id"
)
#: How long a browser may cache a preflight response; the longest that Chromium accepts.
_REMEMBERED_S = 7200


def register_cors(app: Flask) -> None:
    """Register the CORS hooks.  Call before those for API keys: a browser sends no key with a preflight request."""
    app.before_request(_answer_preflight)
    app.after_request(_allow)


def _answer_preflight() -> Response | None:
    if request.method != "OPTIONS" or not _allowed() or "Access-Control-Request-Method" not in request.headers:
        return None
    answer = Response(status=204)
    answer.headers["Access-Control-Allow-Methods"] = _METHODS
    answer.headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
    answer.headers["Access-Control-Max-Age"] = str(_REMEMBERED_S)
    return answer


def _allow(answer: Response) -> Response:
    if services().settings.cors_origins:
        answer.vary.add("Origin")
    if _allowed():
        answer.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        answer.headers["Access-Control-Expose-Headers"] = _ANSWER_HEADERS
    return answer


def _allowed() -> bool:
    return request.headers.get("Origin") in services().settings.cors_origins
