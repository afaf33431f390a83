"""The way to Redis: a client that gives up in time, the scripts, and what their faults mean."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from jobs.errors import QueueUnavailable
from jobs.settings import SharedSettings


def connect(settings: SharedSettings) -> redis.Redis:
    """Make a client that gives up within seconds instead of hanging; it connects on first use."""
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=2,
        **tls_options(settings),
        health_check_interval=30,
        # One immediate retry repairs a pooled connection that the server has closed.  A script may so run twice; what
        # the second run finds is said at each script.
        retry=Retry(NoBackoff(), 1),
    )


def tls_options(settings: SharedSettings) -> dict[str, Any]:  # Any: what redis-py's connections take
    """How the server's certificate is checked; empty where the URL asks for no TLS."""
    if not settings.redis_url.get_secret_value().startswith("rediss://"):
        return {}
    authorities = {"ssl_ca_certs": settings.redis_ca} if settings.redis_ca else {}
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **authorities}


def load_script(client: redis.Redis, name: str, *, takes_in: bool = False, after: tuple[str, ...] = ()) -> Script:
    """Make the script of this name, with what all share before it.

    after: what it shares with some.
    takes_in: a full Redis refuses it.  All others are let through: what was taken in must still come to its end,
    which is what makes room again.
    """
    scripts = importlib.resources.files("jobs") / "lua"
    text = "".join((scripts / f"{part}.lua").read_text() for part in ("lanes", "batches", "prelude", *after, name))
    return client.register_script(text if takes_in else f"#!lua flags=allow-oom\n{text}")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Say QueueUnavailable for a Redis that does not answer, or is full."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError) as error:
        raise QueueUnavailable from error
    except redis.exceptions.OutOfMemoryError as error:
        raise QueueUnavailable("The queue is full. Nothing was recorded; send the request again later.") from error
