"""A small webhook receiver: an HTTP server in a thread that keeps the events it has verified.

For the demo and the tests, and as a model for a real one: read the raw body, verify, respond fast.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Self

from maskfleet.client.errors import WebhookRejected
from maskfleet.client.webhooks import ID, WebhookEvent, verify_webhook
from maskfleet.jobs.schema.events import Event
from maskfleet.stack.hook_server import HookServer


class Receiver:
    """Listens on a free port of this machine while its ``with`` lasts."""

    def __init__(self, *secrets: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._secrets = secrets
        self._news = threading.Condition()
        self._events: dict[str, WebhookEvent] = {}
        self._refused: list[str] = []
        self._server = HookServer(self._take, host=host, port=port)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    @property
    def url(self) -> str:
        """The URL to name in a job's webhook."""
        return self._server.url

    @property
    def events(self) -> tuple[WebhookEvent, ...]:
        """The verified events, each once however often it arrived."""
        with self._news:
            return tuple(self._events.values())

    @property
    def refused(self) -> tuple[str, ...]:
        """Why other webhooks were rejected."""
        with self._news:
            return tuple(self._refused)

    def wait_for(self, job_id: str, timeout_s: float) -> Event:
        """Wait for the event of a job's end and return it.  Raises TimeoutError."""

        def found() -> Event | None:
            job_events = (event for event in self._events.values() if isinstance(event, Event))
            return next((event for event in job_events if event.data.id == job_id), None)

        with self._news:
            event = self._news.wait_for(found, timeout_s)
            if event is None:
                raise TimeoutError(f"No verified webhook for {job_id} arrived within {timeout_s:g} s.")
            return event

    def _take(self, body: bytes, headers: Mapping[str, str]) -> int:
        try:
            event = verify_webhook(body, headers, self._secrets)
        except WebhookRejected as error:
            with self._news:
                self._refused.append(str(error))
                self._news.notify_all()
            return 401
        with self._news:
            self._events[next(value for name, value in headers.items() if name.lower() == ID)] = event
            self._news.notify_all()
        return 204
