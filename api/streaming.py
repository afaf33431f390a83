"""A job's changes as Server-Sent Events.

Each event is the whole job in its current state, with the version of its record as the event's id: a client that missed
some is up to date with the next one, and a client that reconnects says which version it has seen.  A record leaves a
terminal state only by a retry, and a stream ends with the first terminal state that it sends.

Source: the HTML Living Standard, section "Server-sent events".
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing

from maskfleet.api.follow import FIRST_LOOK_S
from maskfleet.api.long_poll import Hold
from maskfleet.api.services import Services, whole_view
from maskfleet.jobs.errors import QueueUnavailable, Unauthorized
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.record import JobRecord, JobView
from maskfleet.jobs.status import Status

#: Clients reconnect after this long when a stream ended before its job.
RECONNECT_MS = 1000
#: A queued job moves up without a change to its own record; its place is checked this often, less often by many.
PLACE_LOOK_S = 2.0
#: A stream whose job does not change wakes up this often, to check its key; the key's holder is remembered for a while
#: as well (auth.py), and a stream ends within five seconds after its key was revoked.
KEY_LOOK_S = 2.0

logger = get_logger()


def job_events(
    record: JobRecord, seen: int | None, services: Services, address: str, seconds: float, hold: Hold
) -> Iterator[bytes]:
    """Yield the job in its current state, then after each change, for at most ``seconds``.

    Ends as well when the client has hung up, or its key is revoked.
    seen: the version that the client already has; it is not sent again.  address: see ``base_url``.
    """
    # The first bytes flush the response's headers, so that the client knows at once that the stream is open.
    yield f"retry: {RECONNECT_MS}\n\n".encode()
    try:
        yield from _changes(record, seen, services, address, time.monotonic() + seconds, hold)
    except QueueUnavailable:
        # The status is already sent, so no problem document can follow.  The client reconnects and gets the error then.
        logger.warning("events_broke_off", job_id=record.id)
    except Unauthorized:
        logger.info("events_ended", job_id=record.id, reason="the key or the token is no longer valid")


def _changes(
    record: JobRecord, seen: int | None, services: Services, address: str, deadline: float, hold: Hold
) -> Iterator[bytes]:
    place = whole_view(record, services, address).queue_position if seen == record.version else None
    status = record.status
    version: int | None = record.version
    spoke = looked_at_place = time.monotonic()
    with closing(services.waits.follow(record.id, hold)) as follower:
        while hold.goes_on():
            now = time.monotonic()
            place_may_have_moved = (
                status is Status.QUEUED
                and now - looked_at_place >= PLACE_LOOK_S
                and services.waits.may_look_at_place(now - looked_at_place)
            )
            if version != seen or place_may_have_moved:
                latest = services.ledger.read(record.id)
                if latest is None:  # deleted, or expired
                    return
                view = whole_view(latest, services, address)
                if (latest.version, view.queue_position) != (seen, place):
                    yield _event(latest.version, view)
                    spoke = now
                seen, place, status, looked_at_place = latest.version, view.queue_position, latest.status, now
                if status.ended:
                    return
            elif now - spoke >= services.settings.heartbeat_s:
                yield b": nothing new\n\n"
                spoke = now
            if now >= deadline:
                return
            wakes = [deadline, spoke + services.settings.heartbeat_s, now + KEY_LOOK_S * random.uniform(0.8, 1)]  # noqa: S311 — spreads streams out; no secret
            if status is Status.QUEUED and looked_at_place + PLACE_LOOK_S > now:
                wakes.append(looked_at_place + PLACE_LOOK_S)
            version = follower.wait(seen, max(min(wakes) - now, FIRST_LOOK_S))


def _event(version: int, view: JobView) -> bytes:
    return f"id: {version}\nevent: job\ndata: {view.model_dump_json()}\n\n".encode()
