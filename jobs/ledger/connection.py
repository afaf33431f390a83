"""The connection to Redis: a client with timeouts, the scripts, and the translation of errors."""

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
#: The files that a script requires, and its flags; both are declared at its head.
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
        # One immediate retry replaces a pooled connection that the server has closed.  A script may therefore run
        # twice; each script says what its second run finds.
        retry=Retry(NoBackoff(), 1),
    )


def tls_options(settings: SharedSettings) -> dict[str, Any]:  # Any: what redis-py's connections take
    """Return the options for checking the server's certificate; empty for a URL without TLS."""
    if not settings.redis_url.get_secret_value().startswith("rediss://"):
        return {}
    authorities = {"ssl_ca_certs": settings.redis_ca} if settings.redis_ca else {}
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **authorities}


def load_script(client: redis.Redis, name: str) -> Script:
    """Return the script with this name, ready to be called."""
    return client.register_script(script_text(name))


def script_text(name: str) -> str:
    """Return a script after the files in its line ``-- requires: …``, each once and after its own requirements.

    A script that adds no work begins with the shebang ``flags=allow-oom``, and runs even when Redis is out of memory:
    accepted jobs must be able to finish, and that frees memory.  Without it, a full Redis rejects the first write.
    """
    texts: dict[str, str] = {}
    _collect(name, texts)
    shebang, text = _SHEBANG.match(texts[name]), texts.pop(name)
    return (shebang[0] if shebang else "") + "".join(texts.values()) + _SHEBANG.sub("", text)


def _collect(name: str, texts: dict[str, str]) -> None:
    """Read a file of ``jobs/ledger/lua`` into ``texts``, after the files it requires."""
    text = (SCRIPTS / f"{name}.lua").read_text()
    required = _REQUIRES.search(text)
    for part in required[1].split(", ") if required else ():
        if part not in texts:
            _collect(part, texts)
    texts[name] = text


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise QueueUnavailable when Redis does not respond, or is full."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError) as error:
        raise QueueUnavailable from error
    except redis.exceptions.OutOfMemoryError as error:
        raise QueueUnavailable("The job queue is full. Nothing was recorded; send the request again later.") from error
