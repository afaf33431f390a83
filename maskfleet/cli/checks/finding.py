"""What a check found, and how that is mended.  No finding holds a secret."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

#: Slower servers work, but every job makes dozens of calls.
SLOW_MS = 50.0


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.  mend: what to do about it; empty if nothing."""

    name: str
    state: State
    detail: str
    mend: str = ""

    @property
    def document(self) -> dict[str, str]:
        return {"check": self.name, "state": str(self.state), "detail": self.detail, "mend": self.mend}


class CannotGoOnError(Exception):
    """A check failed on which all others depend."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


def timed(name: str, detail: str, took_ms: float, mend: str) -> Finding:
    if took_ms > SLOW_MS:
        return Finding(name, State.WARNING, f"{detail}, but slowly: {took_ms:.0f} ms a call.", mend)
    return Finding(name, State.OK, f"{detail} ({took_ms:.1f} ms a call).")


def address(url: str) -> str:
    """Return a URL's scheme, host and port; never its user and password, even where these hold a slash."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{re.split('[/?#]', rest.rpartition('@')[2])[0]}"


def without_secrets(text: str) -> str:
    """Return a library's message with what could be a URL's user and password left out."""
    return " ".join(address(word) if "://" in word else word for word in text.split(" "))


def size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
