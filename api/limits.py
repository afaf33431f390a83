"""Rate limits, counted in Redis per key, and per client address for requests without a known key.

The headers are those of draft-ietf-httpapi-ratelimit-headers up to version 7: ``RateLimit-Limit``, ``-Remaining`` and
``-Reset``, the last in seconds until some of the quota is restored.
"""

from __future__ import annotations

import math
import time
from typing import Any

import redis
from flask import Flask, Response, g, request
from flask_limiter import Limiter

from maskfleet.api.connections import client_network
from maskfleet.api.services import EXTENSION, Services, current_services
from maskfleet.jobs.logs import get_logger

#: How long counting pauses after Redis failed to count: a Redis that hangs must not delay each request twice.
REST_S = 5.0

logger = get_logger()


def register_limits(app: Flask) -> None:
    """Count each request to a route with a scope; must run after the caller is identified.

    When Redis is down or full, nothing is counted; routes that need the ledger respond 503 by themselves.
    """
    services: Services = app.extensions[EXTENSION]
    # Any: the extension declares strings and numbers, but passes everything on to the storage of the library `limits`.
    storage: Any = {"connection_pool": services.redis.connection_pool, "key_prefix": "mf:limits"}
    limiter = Limiter(
        _who,
        application_limits=[_limit],
        # Unlike a fixed window, it never lets through twice the limit around the end of a minute.
        strategy="sliding-window-counter",
        storage_uri="redis://",  # the pool below has the address
        storage_options=storage,
        swallow_errors=True,
    )
    # It would log a stack trace for each request that was not counted, and the address of each that was rejected.
    limiter.logger.disabled = True
    resting_until = 0.0

    def is_to_count() -> bool:
        return bool(_limit()) and time.monotonic() >= resting_until

    limiter.request_filter(lambda: not is_to_count())
    limiter.init_app(app)  # counts, and raises above the limit

    @app.before_request
    def rest_when_not_counted() -> None:
        nonlocal resting_until
        if is_to_count() and limiter.current_limit is None:
            resting_until = time.monotonic() + REST_S
            logger.warning("rate_limit_not_counted", resting_s=REST_S)

    @app.after_request
    def tell(response: Response) -> Response:
        current = limiter.current_limit
        if current is None:
            return response
        try:
            reset_at, remaining = current.window
        except redis.RedisError:
            return response
        reset_s = max(1, math.ceil(reset_at - time.time()))
        response.headers["RateLimit-Limit"] = str(current.limit.amount)
        response.headers["RateLimit-Remaining"] = str(remaining)
        response.headers["RateLimit-Reset"] = str(reset_s)
        if current.breached:
            response.headers["Retry-After"] = str(reset_s)
        return response


def _who() -> str:
    return (
        f"key:{g.caller.key_id}"
        if g.caller is not None
        else f"address:{client_network(request.remote_addr or '') or 'none'}"
    )


def _limit() -> str:
    """Return the limit for this request; empty for none."""
    settings = current_services().settings
    if g.caller is not None:
        return settings.rate_limit
    return settings.anonymous_rate_limit if g.refusal is not None else ""
