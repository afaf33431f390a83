"""How often a caller may ask: counted in Redis for each key, and for each address that shows no known key.

The headers are those of draft-ietf-httpapi-ratelimit-headers up to version 7: ``RateLimit-Limit``, ``-Remaining`` and
``-Reset``, the last in seconds until some of the quota comes back.
"""

from __future__ import annotations

import ipaddress
import math
import time
from typing import Any

import redis
from flask import Flask, Response, g, request
from flask_limiter import Limiter

from maskfleet.api.services import EXTENSION, Services, services
from maskfleet.jobs.logs import get_logger

#: After Redis did not count, nothing is counted for so long: a Redis that hangs must not hold each request twice.
REST_S = 5.0

logger = get_logger()


def register_limits(app: Flask) -> None:
    """Count each request that stands before a route with a scope; it is known by then who asks.

    Without Redis, or with a full one, nothing is counted; what needs the ledger answers 503 by itself.
    """
    door: Services = app.extensions[EXTENSION]
    # Any: the extension declares strings and numbers; it hands everything on to the storage of the library `limits`.
    storage: Any = {"connection_pool": door.redis.connection_pool, "key_prefix": "mf:limits"}
    limiter = Limiter(
        _who,
        application_limits=[_limit],
        # Unlike a fixed window, it never lets twice the number through around the end of a minute.
        strategy="sliding-window-counter",
        storage_uri=door.settings.redis_url.get_secret_value(),
        storage_options=storage,
        swallow_errors=True,
    )
    # It would log a stack for each request that was not counted, and the address of each that was refused.
    limiter.logger.disabled = True
    resting_until = 0.0

    def is_to_count() -> bool:
        return bool(_limit()) and time.monotonic() >= resting_until

    limiter.request_filter(lambda: not is_to_count())
    limiter.init_app(app)  # counts, and raises when it is too much

    @app.before_request
    def rest_when_not_counted() -> None:
        nonlocal resting_until
        if is_to_count() and limiter.current_limit is None:
            resting_until = time.monotonic() + REST_S
            logger.warning("rate_limit_not_counted", resting_s=REST_S)

    @app.after_request
    def tell(answer: Response) -> Response:
        current = limiter.current_limit
        if current is None:
            return answer
        try:
            reset_at, remaining = current.window
        except redis.RedisError:
            return answer
        reset_s = max(1, math.ceil(reset_at - time.time()))
        answer.headers["RateLimit-Limit"] = str(current.limit.amount)
        answer.headers["RateLimit-Remaining"] = str(remaining)
        answer.headers["RateLimit-Reset"] = str(reset_s)
        if current.breached:
            answer.headers["Retry-After"] = str(reset_s)
        return answer


def _who() -> str:
    return f"key:{g.caller.key_id}" if g.caller is not None else f"address:{_network(request.remote_addr or '')}"


def _limit() -> str:
    """The limit on this request; empty for none."""
    settings = services().settings
    if g.caller is not None:
        return settings.rate_limit
    return settings.anonymous_rate_limit if g.refusal is not None else ""


def _network(address: str) -> str:
    """Of IPv6, one caller has a whole /64."""
    try:
        whole = ipaddress.ip_address(address)
    except ValueError:  # a UNIX socket has none
        return "none"
    return str(ipaddress.ip_network((whole, 64), strict=False)) if whole.version == 6 else address
