"""What ``maskfleet webhook listen`` does with each webhook: verify it, show it, respond."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from maskfleet.cli.terminal import printable
from maskfleet.client.errors import WebhookRejected
from maskfleet.client.webhooks import ID, TIMESTAMP, verify_webhook
from maskfleet.jobs.schema.events import UnknownEvent


class Listener:
    """Shows webhooks one at a time as they arrive, and counts how often each one came."""

    def __init__(self, secrets: tuple[str, ...], answer: int | None, say: Callable[[str], object]) -> None:
        """secrets: if empty, nothing is verified.  answer: the status for everything; None: 204, or 400 if invalid."""
        self._secrets = secrets
        self._answer = answer
        self._say = say
        self._turn = threading.Lock()
        self._came: Counter[str] = Counter()

    def take(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Show a webhook and return the status to respond with."""
        given = {name.lower(): value for name, value in headers.items()}
        believed, verdict = self._judge(body, given)
        status = self._answer or (204 if believed else 400)
        text, kind = _read(body)
        # Indented, so that no body can pass for a line of this program.
        body_lines = "\n".join(f"  {printable(line)}" for line in text.split("\n"))
        with self._turn:
            name = given.get(ID, "")
            self._came[name] += 1
            again = f", received for the {_nth(self._came[name])} time" if name and self._came[name] > 1 else ""
            self._say(
                f"{datetime.now(UTC):%H:%M:%S} UTC  {printable(kind)}  {printable(name) or '(no id)'}{again}\n"
                f"  {verdict}; signed {printable(_when(given.get(TIMESTAMP, '')))}; responded {status}\n"
                f"{body_lines}\n"
            )
        return status

    def _judge(self, body: bytes, headers: Mapping[str, str]) -> tuple[bool, str]:
        if not self._secrets:
            return True, "not verified (no secret)"
        try:
            event = verify_webhook(body, headers, self._secrets)
        except WebhookRejected as error:
            return False, f"invalid: {error}"
        # A signed event that this program is too old to know is accepted all the same.
        return True, "valid, but newer than this program" if isinstance(event, UnknownEvent) else "valid"


def _read(body: bytes) -> tuple[str, str]:
    """Return the body in readable form, and the event type that it names."""
    text = body.decode(errors="backslashreplace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text, "(not JSON)"
    kind = document.get("type") if isinstance(document, dict) else None
    return json.dumps(document, indent=2, ensure_ascii=False), kind if isinstance(kind, str) else "(no type)"


def _when(timestamp: str) -> str:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 11):
        return timestamp or "at an unknown time"
    return f"at {datetime.fromtimestamp(int(timestamp), UTC):%Y-%m-%d %H:%M:%S} UTC"


def _nth(count: int) -> str:
    ending = "th" if 10 <= count % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"
