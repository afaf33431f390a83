"""The way to Redis: a client that gives up in time, the scripts, and what their faults mean."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.settings import SharedSettings

#: The folder of the scripts.
SCRIPTS = importlib.resources.files("maskfleet.jobs.ledger") / "lua"
#: What a script stands on, and the flags that it runs with: both are said at its head.
_REQUIRES = re.compile(r"^-- requires: (.+)$", re.MULTILINE)
_SHEBANG = re.compile(r"\A#!lua .*\n")


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


def load_script(client: redis.Redis, name: str) -> Script:
    """Return the script of this name, ready to be called."""
    return client.register_script(script_text(name))


def script_text(name: str) -> str:
    """Return a script behind what its line ``-- requires: …`` names, each once and after what it requires itself.

    Its first line may be the shebang with which a full Redis lets it through (``flags=allow-oom``): what was taken in
    must come to its end, which is what makes room again.  Without one, a full Redis refuses its first write.
    """
    texts: dict[str, str] = {}
    _collect(name, texts)
    shebang, text = _SHEBANG.match(texts[name]), texts.pop(name)
    return (shebang[0] if shebang else "") + "".join(texts.values()) + _SHEBANG.sub("", text)


def _collect(name: str, texts: dict[str, str]) -> None:
    """Read a file of ``jobs/ledger/lua`` after those that it requires."""
    text = (SCRIPTS / f"{name}.lua").read_text()
    required = _REQUIRES.search(text)
    for part in required[1].split(", ") if required else ():
        if part not in texts:
            _collect(part, texts)
    texts[name] = text


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise QueueUnavailable for a Redis that does not answer, or is full."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError) as error:
        raise QueueUnavailable from error
    except redis.exceptions.OutOfMemoryError as error:
        raise QueueUnavailable("The job queue is full. Nothing was recorded; send the request again later.") from error
