"""A webhook receiver that can be healthy, slow, broken or gone, and records everything it gets."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from maskfleet.client.errors import WebhookRejected
from maskfleet.client.webhooks import verify_webhook
from tests.faults.history import History, Notified
from tests.faults.proxy import Fault, Mode, Proxy

#: Longer than the couriers wait for a response.
SLOW_S = 1.5


class HookReceiver:
    """Listen inside ``with``; ``url`` is the address to use in a job."""

    def __init__(self, secret: str, history: History) -> None:
        self.answer = 204
        self.slow = False
        #: Webhooks that got an error, a late response, or none at all.
        self.turned_away = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver.answer
                if slow := receiver.slow:
                    time.sleep(SLOW_S)
                receiver.turned_away += slow or answer >= 300
                history.note(_sight(body, dict(self.headers), secret, 0 if slow else answer))
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:  # the courier gave up, or was killed
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._exits.callback(self._server.server_close)
        self._exits.callback(self._server.shutdown)
        self._way = self._exits.enter_context(Proxy(self._server.server_port))
        self.url = f"http://127.0.0.1:{self._way.port}/hook"
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @contextmanager
    def answering(self, status: int) -> Iterator[None]:
        self.answer = status
        try:
            yield
        finally:
            self.answer = 204

    @contextmanager
    def answering_late(self) -> Iterator[None]:
        self.slow = True
        try:
            yield
        finally:
            self.slow = False

    @contextmanager
    def down(self) -> Iterator[None]:
        self._way.set(Fault(Mode.RESET))
        try:
            yield
        finally:
            self.turned_away += self._way.heal()


def _sight(body: bytes, headers: dict[str, str], secret: str, answered: int) -> Notified:
    headers = {name.lower(): value for name, value in headers.items()}
    event = json.loads(body)
    data = event["data"]
    try:
        verify_webhook(body, headers, secret)
        signed = True
    except WebhookRejected:
        signed = False
    return Notified(
        job=data["id"],
        webhook_id=headers["webhook-id"],
        status=data["status"],
        answered=answered,
        signed=signed,
        event=event.get("type", ""),
        body=hashlib.sha256(body).hexdigest(),
        counts=data.get("counts", {}),
    )
