"""Follow jobs over their event streams, as a page does: events are in order, whatever breaks a stream off."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import requests

from tests.faults.history import Shown
from tests.faults.laboratory import Laboratory
from tests.faults.promises import ENDED

#: How long one stream lasts, and how long one job is followed.
STREAM_S, FOLLOWED_S = 5, 60.0
AGAIN_S = 0.2


def follow(lab: Laboratory, job: str, over: threading.Event) -> None:
    """Record each event of a job until its end; reconnect with the last one's id when a stream breaks off."""
    seen, streams = "", 0
    until = time.monotonic() + FOLLOWED_S
    while time.monotonic() < until and not over.is_set():
        try:
            for version, view in _events(lab, job, seen):
                sight = Shown(
                    job=job,
                    status=view["status"],
                    error=(view.get("error") or {}).get("code", ""),
                    way="followed",
                    version=int(version),
                    place=view.get("queue_position"),
                    stream=streams,
                )
                lab.history.note(sight)
                seen = version
                if view["status"] in ENDED:
                    return
        except requests.RequestException:
            pass  # the API was killed, or Redis is down
        streams += 1
        over.wait(AGAIN_S)


def _events(lab: Laboratory, job: str, seen: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of one stream: the id of each, and the job that it shows."""
    headers = {"Prefer": f"wait={STREAM_S}"} | ({"Last-Event-ID": seen} if seen else {})
    path = f"/v1/jobs/{job}/events"
    with closing(lab.ask("GET", path, timeout_s=STREAM_S + 3, headers=headers, stream=True)) as answer:
        if answer.status_code != 200:
            return
        event: dict[str, str] = {}
        for line in answer.iter_lines(chunk_size=None, decode_unicode=True):
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif "data" in event:  # an event is complete at the empty line; one that breaks off earlier does not count
                yield event["id"], json.loads(event["data"])
                event = {}
