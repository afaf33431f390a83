"""What a server at a URL answers."""

from __future__ import annotations

import requests

#: How long it may take.
ANSWER_S = 5.0


def is_ours(url: str) -> bool:
    """Return whether a program of maskfleet answers: its liveness check has a body of its own."""
    try:
        with _session() as session:
            body = session.get(f"{url}/live", timeout=ANSWER_S).text.strip()
    except requests.RequestException:
        return False
    return body == "live" or body.replace(" ", "") == '{"status":"live"}'


def status_of(url: str, headers: dict[str, str] | None = None) -> int | None:
    try:
        with _session() as session:
            return session.get(url, headers=headers, timeout=ANSWER_S).status_code
    except requests.RequestException:
        return None


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # the user's proxy must not handle requests within this machine
    return session
