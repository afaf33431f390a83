"""A small HTTP server for webhooks: it reads bounded POST bodies and responds with a given status."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

#: Standard Webhooks recommends bodies under 20 kB.
MAX_BODY_BYTES = 64 * 1024
#: A connection that is silent for this long is closed.
READ_S = 10

#: Takes the body and the headers, and returns the status to respond with.
Taker = Callable[[bytes, Mapping[str, str]], int]


class HookServer:
    """Listens while its ``with`` lasts.  port: 0 for any free one.  Raises OSError if it is taken."""

    def __init__(self, take: Taker, *, host: str = "127.0.0.1", port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = READ_S

            def handle(self) -> None:
                with suppress(ConnectionError):  # the sender did not wait for the response
                    super().handle()

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
                    self.send_error(413)
                    return
                body = self.rfile.read(int(length))
                if len(body) < int(length):  # the sender closed the connection early
                    return
                self.send_response(take(body, dict(self.headers)))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The URL to name in a job's webhook."""
        return f"http://{self._server.server_address[0]!s}:{self._server.server_address[1]}/"
