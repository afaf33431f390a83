"""Outgoing requests to caller-supplied URLs: images and webhooks.

Only https to public addresses, unless the settings allow private ones, and never to the service's own servers.  Each
connection resolves its host name once, checks every address it gets, and connects to one of those; the name stays in
Host, in SNI and in the certificate check.  ``timeout`` covers the whole exchange, from the DNS lookup to the last byte
of the response.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from http.client import HTTPException, HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from maskfleet.jobs.addresses import (
    PUBLIC_PORTS,
    AddressRefused,
    AddressRules,
    Endpoint,
    IPNetwork,
    address_rules,
    check_url,
)

#: How often an image URL may redirect; `maskfleet.worker.sources` follows the redirects.
MAX_REDIRECTS = 3
#: The largest response headers; browsers stop at about 256 KiB.
MAX_HEADER_BYTES = 64 * 1024
#: If a name has several addresses, one that does not respond is given up after this time.
CONNECT_TIMEOUT_S = 5.0

#: As `socket.getaddrinfo`.
Resolve = Callable[..., "list[tuple[Any, ...]]"]


def egress_session(
    *,
    allow_private: bool,
    ports: Iterable[int] = PUBLIC_PORTS,
    networks: Iterable[IPNetwork] = (),
    denied: Iterable[Endpoint] = (),
    resolve: Resolve = socket.getaddrinfo,
) -> requests.Session:
    """Return a session; ``allow_private`` allows plain http, any port and any address, ``networks`` those in them.

    denied: the service's own servers.
    """
    rules = address_rules(allow_private=allow_private, ports=ports, networks=networks, denied=denied)
    return EgressSession(rules, resolve)


class EgressSession(requests.Session):
    """A session that checks where it connects to.  Thread-safe.

    Every request needs a ``timeout`` in seconds.  It follows no redirects, ignores proxies in the environment and
    keeps no cookies.  Raises AddressRefused, or what requests raises.
    """

    def __init__(self, rules: AddressRules, resolve: Resolve = socket.getaddrinfo) -> None:
        super().__init__()
        self._rules = rules
        self.trust_env = False  # a proxy would resolve the name itself and connect unchecked
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # one job's must not go with another's
        self.headers["User-Agent"] = "maskfleet"
        self.headers["Accept-Encoding"] = "identity"
        self.adapters.clear()
        for scheme in ("https://", "http://"):
            self.mount(scheme, _CheckedAdapter(rules, resolve))

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """Check the URL as it was written, before requests normalises it."""
        check_url(str(request.url), self._rules)
        return super().prepare_request(request)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: requests would read the whole body of a redirect."""


class _CheckedAdapter(HTTPAdapter):
    def __init__(self, rules: AddressRules, resolve: Resolve) -> None:
        super().__init__()
        self._rules = rules
        self.poolmanager.pool_classes_by_scheme = _pools(rules, resolve)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,  # as in requests, whose type is its own
        verify: bool | str = True,
        cert: Any = None,  # as in requests
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002  a proxy would make the connection
    ) -> requests.Response:
        check_url(str(request.url), self._rules)
        here = _deadline.set(Deadline(float(timeout)))
        try:
            return super().send(request, stream, timeout, verify, cert, proxies=None)
        finally:
            _deadline.reset(here)


class Deadline:
    """When the time of one exchange is up."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        """The seconds left; raises TimeoutError if there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request timed out")
        return left


#: The deadline of the request that this thread is sending; urllib3 has no other way to pass it on.
_deadline: ContextVar[Deadline] = ContextVar("deadline")


def _pools(rules: AddressRules, resolve: Resolve) -> dict[str, type[HTTPConnectionPool]]:
    """Return urllib3 pool classes whose connections go only where the rules allow."""

    class Plain(HTTPConnection):
        response_class = _TimedResponse

        def _new_conn(self) -> socket.socket:
            return _connect(self, "http", rules, resolve)

        def request(self, *args: Any, **named: Any) -> None:  # as in urllib3
            _let_time_run(self)
            super().request(*args, **named)

    class Secure(HTTPSConnection):
        response_class = _TimedResponse

        def _new_conn(self) -> socket.socket:
            return _connect(self, "https", rules, resolve)

        def request(self, *args: Any, **named: Any) -> None:  # as in urllib3
            _let_time_run(self)
            super().request(*args, **named)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _let_time_run(connection: HTTPConnection) -> None:
    if connection.sock is not None:  # otherwise it is still to be connected, with its own timeout
        connection.sock.settimeout(_deadline.get().left_s())


def _connect(connection: HTTPConnection, scheme: str, rules: AddressRules, resolve: Resolve) -> socket.socket:
    """Resolve a connection's host once, check every address it resolves to, and connect to one of them."""
    host, port, deadline = connection._dns_host, connection.port or 0, _deadline.get()
    try:
        found = _resolved(partial(resolve, host, port, type=socket.SOCK_STREAM), deadline)
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, f"resolving {host} timed out") from error
    except socket.gaierror as error:
        raise NameResolutionError(host, connection, error) from error
    except ValueError as error:  # includes UnicodeError: a label that is not valid in a host name
        raise AddressRefused("invalid_url", "The host name cannot be resolved.") from error
    addresses = [ip_address(address[0]) for *_, address in found]
    for one in addresses:
        rules.check(scheme, port, one)
    for own in rules.denied_at(port):
        ours = _addresses_of(own.host, resolve, deadline)
        for one in addresses:
            rules.check_is_not(own, one, ours)
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(min(CONNECT_TIMEOUT_S, deadline.left_s()))
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(deadline.left_s())
            return made
        except OSError as error:  # includes TimeoutError
            made.close()
            failure = error
    raise NewConnectionError(connection, f"no address of {host} accepts a connection: {failure}") from failure


def _addresses_of(host: str, resolve: Resolve, deadline: Deadline) -> list[str]:
    """Look up one of the service's own servers; one that is not found now is nowhere that could be connected to."""
    try:
        return [
            address[0] for *_, address in _resolved(partial(resolve, host, None, type=socket.SOCK_STREAM), deadline)
        ]
    except (socket.gaierror, ValueError):
        return []


def _resolved(look_up: Callable[[], list[tuple[Any, ...]]], deadline: Deadline) -> list[tuple[Any, ...]]:
    """Resolve a name in a thread of its own: the C library may wait for a silent name server for any length of time."""
    answers: SimpleQueue[list[tuple[Any, ...]] | Exception] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put(look_up())
        except Exception as error:  # noqa: BLE001  it is raised in the thread that waits
            answers.put(error)

    threading.Thread(target=answer, name="look-up", daemon=True).start()
    try:
        found = answers.get(timeout=deadline.left_s())
    except Empty as error:
        raise TimeoutError from error
    if isinstance(found, Exception):
        raise found
    return found


class _TimedResponse(HTTPResponse):
    """A response whose reads all respect the exchange's deadline, and whose headers are bounded."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._timed = _TimedReader(sock, _deadline.get(), MAX_HEADER_BYTES)
        self.fp.close()
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        super().begin()
        self._timed.bytes_left = None


class _TimedReader(io.RawIOBase):
    """Reads a socket.  bytes_left: how much may still be read; None for no limit."""

    def __init__(self, sock: socket.socket, deadline: Deadline, bytes_left: int | None) -> None:
        super().__init__()
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline
        self.bytes_left = bytes_left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # as in io
        if self.bytes_left is not None and self.bytes_left <= 0:
            raise HTTPException("the response headers are too long")
        self._sock.settimeout(self._deadline.left_s())
        count = self._raw.readinto(buffer)
        if self.bytes_left is not None:
            self.bytes_left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
