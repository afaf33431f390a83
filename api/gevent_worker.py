"""gunicorn's gevent worker, with deadlines: a connection costs no thread, and none lasts for longer than it is used.

Each connection has a greenlet.  The standard library's sockets, locks and threads are replaced by gevent's when the
process starts, before the app is imported; then whatever waits lets others run.  What computes for long does not, and
belongs into ``services.cpu``.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import wait_read
from gunicorn import http, util
from gunicorn.workers.ggevent import GeventWorker

from maskfleet.api.connections import Connection, Connections, Refused
from maskfleet.jobs.errors import BodyTooSlow
from maskfleet.jobs.settings import ApiSettings

#: How long a response may take to be sent while the client reads nothing.
SEND_S = 60.0
#: A body that nobody wants, such as one that came with an unknown key, is read for this long, so that the client gets
#: to read its response; then the connection is closed.
UNWANTED_BODY_S, UNWANTED_BODY_BYTES = 2.0, 128 * 2**20
#: As much of one is read for the connection to stay usable.
UNREAD_S, UNREAD_BYTES = 1.0, 64 * 2**10
#: After so many bytes, others have a turn.
LARGE_READ_BYTES = 8 * 2**10
#: Files that a process has open besides its clients' connections: those to Redis and S3, libraries, logs.
OTHER_FILES = 512
#: Connections that are being refused at the same time, beyond those that were let in.
REFUSED_AT_ONCE = 256


class TimedSocket:
    """A client's socket as gunicorn's parser reads it: each ``recv`` uses up time that was allowed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._left_s = self._most_s = self._rate = 0.0
        self._too_slow: Callable[[], Exception] = TimeoutError

    def allow(self, seconds: float, *, rate: float = 0.0, too_slow: Callable[[], Exception] = TimeoutError) -> None:
        """Allow reading for ``seconds`` in all, not counting the time between reads.

        rate: each so many bytes give back one second, up to ``seconds``.  too_slow: makes the error to raise.
        """
        self._left_s = self._most_s = seconds
        self._rate, self._too_slow = rate, too_slow

    def recv(self, size: int) -> bytes:
        began = time.monotonic()
        self._sock.settimeout(max(self._left_s, 0.001))
        try:
            data = self._sock.recv(size)
        except TimeoutError:
            raise self._too_slow() from None
        finally:
            self._sock.settimeout(SEND_S)
        self._left_s -= time.monotonic() - began
        if len(data) >= LARGE_READ_BYTES:
            gevent.sleep(0)  # what has arrived is read without waiting, so a fast client would let nobody else run
        if self._rate:
            self._left_s = min(self._most_s, self._left_s + len(data) / self._rate)
        return data


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Serves the API.  What is not said here is gunicorn's."""

    def run(self) -> None:
        """Accept connections until told to end; then let requests end that were begun."""
        settings = self._settings()
        most = _fit_open_files(settings.max_connections)
        self._connections = Connections(most, 0 if settings.trusted_proxies else settings.max_connections_per_address)
        servers = []
        for listener in self.sockets:
            listener.setblocking(True)
            server = StreamServer(listener, handle=partial(self.handle, listener), spawn=Pool(most + REFUSED_AT_ONCE))
            if self.cfg.workers > 1:
                server.max_accept = 1  # otherwise one process takes a burst alone
            server.start()
            servers.append(server)
        while self.alive:
            self.notify()
            gevent.sleep(0.2)
        for server in servers:
            server.close()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while len(self._connections) and time.monotonic() < deadline:
            self._connections.end_waiting()
            self.notify()
            gevent.sleep(0.1)
        for server in servers:
            server.stop(timeout=1)

    def handle(self, listener: Any, client: Any, address: Any) -> None:  # Any: gevent's sockets, gunicorn's signature
        """Serve a connection, from its greenlet's begin to its end."""
        client.settimeout(SEND_S)
        try:
            connection = self._connections.enter(client, address)
        except Refused as refused:
            _refuse(client, refused)
            return
        try:
            self._serve(listener, client, address, connection)
        except (OSError, http.errors.NoMoreData, gevent.GreenletExit) as error:
            self.log.debug("Connection ended: %r", error)
        finally:
            self._connections.leave(connection)
            util.close(client)

    def _serve(self, listener: Any, client: Any, address: Any, connection: Connection) -> None:
        settings, timed = self._settings(), TimedSocket(client)
        parser = http.get_parser(self.cfg, timed, address)
        wait_s = settings.head_timeout_s
        while self.alive:
            if not _has_data(parser) and not _readable_within(client, wait_s):
                return
            timed.allow(settings.head_timeout_s)
            request = None
            try:
                request = next(parser)
                if not self._connections.serve(connection):
                    return
                timed.allow(settings.body_timeout_s, rate=settings.body_min_rate, too_slow=partial(_too_slow, request))
                self.handle_request(listener.getsockname(), request, client, address)
            except TimeoutError:
                if request is None:
                    util.write_error(client, 408, "Request Timeout", "The request's head did not arrive in time.")
                    self._linger(client, connection)
                return
            except StopIteration:  # gunicorn's word for the last request of a connection
                self._linger(client, connection)
                return
            except (OSError, http.errors.NoMoreData):
                raise
            except Exception as error:  # noqa: BLE001 — the outermost border: what the head or the app did wrong
                self.handle_error(request, client, address, error)
                self._linger(client, connection)
                return
            timed.allow(UNREAD_S)
            if not parser.finish_body(deadline=time.monotonic() + UNREAD_S, max_bytes=UNREAD_BYTES):
                self._linger(client, connection)
                return
            self._connections.wait(connection)
            wait_s = self.cfg.keepalive

    def _linger(self, client: Any, connection: Connection) -> None:
        """Close a connection such that the client can read its response, even while it is still sending."""
        self._connections.wait(connection)
        util.close_graceful(client, timeout=UNWANTED_BODY_S, max_drain=UNWANTED_BODY_BYTES)

    def _settings(self) -> ApiSettings:
        # Imported here: it imports the app's libraries, which must not happen before gevent has replaced modules.
        from maskfleet.api.services import EXTENSION

        settings: ApiSettings = self.wsgi.extensions[EXTENSION].settings
        return settings


def _too_slow(request: Any) -> BodyTooSlow:
    request.force_close()
    return BodyTooSlow()


def _has_data(parser: Any) -> bool:
    """Return whether bytes of the next request came together with the last one."""
    data = parser.unreader.take_buffered()
    parser.unreader.unread(data)
    return bool(data)


def _readable_within(client: Any, seconds: float) -> bool:
    try:
        wait_read(client.fileno(), timeout=seconds)
    except TimeoutError:
        return False
    return True


def _refuse(client: Any, refused: Refused) -> None:
    """Say why, read what has arrived so that the client is not reset before it reads that, and close."""
    with contextlib.suppress(OSError):
        client.settimeout(0.05)
        client.sendall(refused.response)
        client.shutdown(socket.SHUT_WR)
        client.recv(65536)
    util.close(client)


def _fit_open_files(wanted: int) -> int:
    """Allow this process as many open files as connections need; return how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + REFUSED_AT_ONCE + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(16, min(wanted, soft - REFUSED_AT_ONCE - OTHER_FILES))
