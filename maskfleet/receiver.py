"""A small webhook receiver: an HTTP server in a thread that keeps the events it could verify.

For the demo and the tests, and to see what a real one does: read the body's bytes, verify, answer fast.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from jobs.events import Event
from maskfleet.problems import WebhookRejected
from maskfleet.webhooks import verify_webhook

#: Standard Webhooks keep a body under 20 kB.
MAX_BODY_BYTES = 64 * 1024


class Receiver:
    """Listens on a free port of this machine while its ``with`` lasts."""

    def __init__(self, secret: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._secret = secret
        self._news = threading.Condition()
        self._events: dict[str, Event] = {}
        self._refused: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not length.isdigit() or int(length) > MAX_BODY_BYTES:
                    self.send_error(413)
                    return
                accepted = receiver._take(self.rfile.read(int(length)), dict(self.headers))
                self.send_response(204 if accepted else 401)
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
        """The address to name in a job's webhook."""
        return f"http://{self._server.server_address[0]!s}:{self._server.server_address[1]}/"

    @property
    def events(self) -> tuple[Event, ...]:
        """The verified events, each once however often it came."""
        with self._news:
            return tuple(self._events.values())

    @property
    def refused(self) -> tuple[str, ...]:
        """Why others were not taken."""
        with self._news:
            return tuple(self._refused)

    def wait_for(self, job_id: str, timeout_s: float) -> Event:
        """Give the event of a job's end, waiting for it.  Raises TimeoutError."""

        def found() -> Event | None:
            return next((event for event in self._events.values() if event.data.id == job_id), None)

        with self._news:
            event = self._news.wait_for(found, timeout_s)
            if event is None:
                raise TimeoutError(f"No verified webhook for {job_id} came within {timeout_s:g} s.")
            return event

    def _take(self, body: bytes, headers: dict[str, str]) -> bool:
        webhook_id = next((value for name, value in headers.items() if name.lower() == "webhook-id"), "")
        try:
            event = verify_webhook(body, headers, self._secret)
        except WebhookRejected as error:
            with self._news:
                self._refused.append(str(error))
                self._news.notify_all()
            return False
        with self._news:
            self._events[webhook_id] = event
            self._news.notify_all()
        return True
