"""A webhook receiver that can be healthy, slow, broken or gone, and records everything it gets."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Self
from urllib.parse import urlsplit

from maskfleet.client.errors import WebhookRejected
from maskfleet.client.webhooks import verify_webhook
from maskfleet.stack.hook_server import HookServer
from tests.faults.history import History, Notified
from tests.faults.proxy import Fault, Mode, Proxy

#: Longer than the couriers wait for a response.
SLOW_S = 1.5


class HookReceiver:
    """Listen inside ``with``; ``url`` is the address to use in a job."""

    def __init__(self, secrets: Mapping[str, str], history: History) -> None:
        """secrets: of each tenant."""
        self.answer = 204
        self.slow = False
        #: Webhooks that got an error, a late response, or none at all.
        self.turned_away = 0
        self._secrets = secrets
        self._history = history
        self._server = HookServer(self._take)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        server = self._exits.enter_context(self._server)
        self._way = self._exits.enter_context(Proxy(urlsplit(server.url).port or 0))
        self.url = f"http://127.0.0.1:{self._way.port}/hook"
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _take(self, body: bytes, headers: Mapping[str, str]) -> int:
        answer = self.answer
        if slow := self.slow:
            time.sleep(SLOW_S)
        self.turned_away += slow or answer >= 300
        self._history.note(_sight(body, headers, self._secrets, 0 if slow else answer))
        return answer

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


def _sight(body: bytes, headers: Mapping[str, str], secrets: Mapping[str, str], answered: int) -> Notified:
    headers = {name.lower(): value for name, value in headers.items()}
    event = json.loads(body)
    data = event["data"]
    return Notified(
        job=data["id"],
        webhook_id=headers["webhook-id"],
        status=data["status"],
        answered=answered,
        signed_for=next((tenant for tenant, secret in secrets.items() if _is_signed(body, headers, secret)), ""),
        event=event.get("type", ""),
        body=hashlib.sha256(body).hexdigest(),
        counts=data.get("counts", {}),
    )


def _is_signed(body: bytes, headers: Mapping[str, str], secret: str) -> bool:
    try:
        verify_webhook(body, headers, secret)
    except WebhookRejected:
        return False
    return True
