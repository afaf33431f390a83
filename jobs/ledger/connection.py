"""The connection to Redis: a client with timeouts that follows a failover, the scripts, and the errors."""

from __future__ import annotations

import importlib.resources
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection

from maskfleet.jobs.ledger.outages import as_unavailable, code_of
from maskfleet.jobs.settings import SharedSettings

#: The folder of the scripts.
SCRIPTS = importlib.resources.files("maskfleet.jobs.ledger") / "lua"
#: The files that a script requires, and its flags; both are declared at its head.
_REQUIRES = re.compile(r"^-- requires: (.+)$", re.MULTILINE)
_SHEBANG = re.compile(r"\A#!lua .*\n")


#: A command that changes nothing, and that Redis refuses whenever it refuses writes; but not when it is merely full.
WRITE_PROBE = ("DEL", "mf:probe")


class _Following:
    """A connection that leaves a server that has become a replica, so that the next command finds its successor.

    The server rejected the command, so it may be sent again.  Idle connections of the same pool go as well: they would
    read from the replica, and miss what was just written.
    """

    #: Codes of answers after which the connection is closed, and redis-py connects again.
    left_on: frozenset[str] = frozenset({"READONLY", "UNBLOCKED"})
    #: Set by ``follow``.
    pool: weakref.ref[redis.ConnectionPool] | None = None

    def read_response(self, *args: Any, **options: Any) -> Any:  # Any: redis-py's own
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]  # of the class that it is mixed into
        except redis.ResponseError as error:
            code = code_of(error)
            if code not in self.left_on:
                raise
            self.disconnect()  # type: ignore[attr-defined]  # as above
            pool = self.pool() if self.pool else None
            if pool is not None:
                pool.disconnect(inuse_connections=False)
            raise redis.ConnectionError(str(error), status_code=code) from error


class Connection(_Following, redis.Connection):
    """A connection without TLS."""


class TlsConnection(_Following, redis.SSLConnection):
    """A connection with TLS."""


class ManagedConnection(_Following, SentinelManagedConnection):
    """A connection to the primary that Sentinels name."""


def follow(pool: redis.ConnectionPool) -> None:
    """Have the pool's connections, of a class above, close its idle ones when the server has become a replica."""
    pool.connection_class = type(pool.connection_class.__name__, (pool.connection_class,), {"pool": weakref.ref(pool)})


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """``sentinel://user:password@host:26379,host2:26379/name/0``: Sentinels, the primary's name, its database.

    user, password: the primary's own; empty for none.
    """

    sentinels: tuple[tuple[str, int], ...]
    name: str
    database: int
    user: str
    password: str

    @classmethod
    def read(cls, url: str) -> SentinelUrl | None:
        """Read the URL; None when it is no Sentinel's.  Raises ValueError."""
        if not url.startswith("sentinel://"):
            return None
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        name, _, database = parts.path.strip("/").partition("/")
        places = [host.rpartition(":") if ":" in host else (host, "", "26379") for host in hosts.split(",")]
        if not name or not all(host and port.isdigit() for host, _, port in places) or not (database or "0").isdigit():
            raise ValueError("write sentinel://user:password@host:26379,host2:26379/name-of-the-primary/0")
        return cls(
            sentinels=tuple((host, int(port)) for host, _, port in places),
            name=name,
            database=int(database or 0),
            user=unquote(user),
            password=unquote(password),
        )


def connect(settings: SharedSettings, *, max_connections: int | None = None) -> redis.Redis:
    """Make a client that gives up within seconds instead of hanging; it connects on first use.

    max_connections: a command that finds that many in use waits for one, instead of opening another.  Sentinels' pools
    cannot wait, so theirs have no bound.
    """
    options: dict[str, Any] = {  # Any: what redis-py's connections take
        "decode_responses": True,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "health_check_interval": 30,
        # One immediate retry replaces a pooled connection that the server has closed.  A script may therefore run
        # twice; each script says what its second run finds.
        "retry": Retry(NoBackoff(), 1),
    }
    url = settings.redis_url.get_secret_value()
    managed = SentinelUrl.read(url)
    if managed is not None:
        options |= {"username": managed.user or None, "password": managed.password or None, "db": managed.database}
        sentinel = Sentinel(managed.sentinels, sentinel_kwargs=sentinel_options(settings))  # type: ignore[no-untyped-call]  # redis-py's
        options["connection_class"] = ManagedConnection
        client = cast("redis.Redis", sentinel.master_for(managed.name, **options))  # type: ignore[no-untyped-call]  # as above
        follow(client.connection_pool)
        return client
    if url.startswith(("redis://", "rediss://")):
        options["connection_class"] = TlsConnection if url.startswith("rediss://") else Connection
    if max_connections is not None:
        options |= {"max_connections": max_connections, "timeout": options["socket_timeout"]}
    pools = redis.ConnectionPool if max_connections is None else redis.BlockingConnectionPool
    client = redis.Redis(connection_pool=pools.from_url(url, **options, **tls_options(settings)))
    client.auto_close_connection_pool = True
    if "connection_class" in options:
        follow(client.connection_pool)
    return client


def sentinel_options(settings: SharedSettings) -> dict[str, Any]:  # Any: as above
    """Return the options of connections to the Sentinels: one that hangs must not use up a request's time."""
    password = settings.redis_sentinel_password.get_secret_value()
    return {"socket_timeout": 1, "socket_connect_timeout": 1, **({"password": password} if password else {})}


def tls_options(settings: SharedSettings) -> dict[str, Any]:  # Any: what redis-py's connections take
    """Return the options for checking the server's certificate; empty for a URL without TLS."""
    if not settings.redis_url.get_secret_value().startswith("rediss://"):
        return {}
    authorities = {"ssl_ca_certs": settings.redis_ca} if settings.redis_ca else {}
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **authorities}


def check_writes(client: redis.Redis) -> None:
    """Raise QueueUnavailable unless Redis accepts writes; changes nothing."""
    with redis_errors():
        client.execute_command(*WRITE_PROBE)  # type: ignore[no-untyped-call]  # redis-py's


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
    """Raise QueueUnavailable for every error that means that Redis cannot serve now."""
    try:
        yield
    except redis.RedisError as error:
        unavailable = as_unavailable(error)
        if unavailable is None:
            raise
        raise unavailable from error
