"""Held responses: long polls (`Prefer: wait=N`, RFC 7240) until the job ends, and streams while they last.

They cost no thread (see gevent_worker), so there may be thousands; each ends when its client hangs up, when its key
is revoked, and when the process is told to end.
"""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing

from maskfleet.api.follow import FIRST_LOOK_S, LAST_LOOK_S, LOOK_GROWTH, Follower, Watch
from maskfleet.api.looks import Looks
from maskfleet.jobs.errors import HoldQuota, QueueUnavailable, TooManyHeld
from maskfleet.jobs.ledger.ends import Ends
from maskfleet.jobs.ledger.jobs import Ledger

#: From so many held responses on, those that look at about the same time do it together.
MANY = 32
#: A wait whose job does not change checks its key this often; see streaming.KEY_LOOK_S.
KEY_LOOK_S = 2.0
#: Places in the queue that one process looks at in a second for its streams, and in a row: each costs a millisecond.
PLACES_PER_S, PLACES_AT_ONCE = 25, 5


class Hold:
    """One held response.  It has a place, which ``release`` gives back."""

    def __init__(
        self, waits: Waits, tenant: str, check_key: Callable[[], object], client: socket.socket | None
    ) -> None:
        self._waits = waits
        self._tenant: str | None = tenant
        self._check_key = check_key
        self._client = client
        self._gone = False

    def goes_on(self) -> bool:
        """Return False when nobody is there any more to respond to, or the process must end.

        Raises Unauthorized when the key has been revoked, QueueUnavailable.
        """
        if self._gone or self._waits.stopping():
            return False
        self._check_key()
        return True

    def pause(self, seconds: float) -> None:
        """Sleep, until the client hangs up at the latest."""
        if self._client is None or self._gone:
            time.sleep(seconds)
            return
        try:
            poll = select.poll()
            poll.register(self._client.fileno(), select.POLLIN)
            if not poll.poll(seconds * 1000):
                return
        except OSError:
            self._gone = True
            return
        if self.hear():
            time.sleep(seconds)

    def connection(self) -> socket.socket | None:
        """Return the client's socket, while it tells whether the client is there."""
        return None if self._gone else self._client

    def hear(self) -> bool:
        """Read into what has come from the client; return False when it has hung up."""
        if self._client is None:
            return not self._gone
        try:
            self._gone = not self._client.recv(1, socket.MSG_PEEK)
        except OSError:
            self._gone = True
        # If the next request is there already, what comes after it cannot be seen: the client is believed to be there.
        self._client = None
        return not self._gone

    def release(self) -> None:
        """Give the place back.  May be called twice."""
        tenant, self._tenant = self._tenant, None
        if tenant is not None:
            self._waits.give_back(tenant)


class Waits:
    """Holds responses open: a limited number in all, and for each tenant."""

    def __init__(
        self,
        ledger: Ledger,
        count: Callable[[int], None],
        *,
        most: int,
        most_per_tenant: int,
        ends: Ends | None = None,
    ) -> None:
        """count: told 1 for each response that is held from now on, and -1 when it is not any more.

        ends: of jobs, as they are announced; without them, all are found by looking.
        """
        self._count = count
        self._most, self._most_per_tenant = most, most_per_tenant
        self._held: Counter[str] = Counter()
        self._next_place_at = 0.0
        self._lock = threading.Lock()
        self._stopping: Callable[[], bool] = lambda: False
        self.statuses = Looks(ledger.statuses, self._gather_s)
        self._watch = Watch(ledger.versions, ends)

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Release all held responses as soon as ``stopping`` returns true, so that the process can end."""
        self._stopping = stopping
        self._watch.stop_when(stopping)

    def poll_by(self, poll: Callable[[], select.poll]) -> None:
        """Poll the clients of streams by this; see ``Watch``."""
        self._watch.poll_by(poll)

    def follow(self, job_id: str, hold: Hold) -> Follower:
        """Follow a job for a held response; the follower must be closed."""
        return self._watch.follow(job_id, hold)

    def stopping(self) -> bool:
        """Return whether held responses must be released."""
        return self._stopping()

    def held(self) -> int:
        """Return how many responses are held."""
        with self._lock:
            return self._held.total()

    def hold(self, tenant: str, check_key: Callable[[], object], client: socket.socket | None) -> Hold:
        """Hold a response.  Raises HoldQuota, TooManyHeld.

        check_key: raises Unauthorized once the key is not valid any more.  client: its socket, where it is known.
        """
        with self._lock:
            if self._held[tenant] >= self._most_per_tenant:
                raise HoldQuota(self._most_per_tenant)
            if self._held.total() >= self._most:
                raise TooManyHeld
            self._held[tenant] += 1
        self._count(1)
        return Hold(self, tenant, check_key, client)

    def may_look_at_place(self, since_s: float) -> bool:
        """Return whether a stream that has not looked for ``since_s`` may look at its job's place in the queue.

        PLACES_PER_S streams may in a second, each after the others have had time for it.
        """
        now = time.monotonic()
        with self._lock:
            if since_s < self._held.total() / PLACES_PER_S or now < self._next_place_at:
                return False
            self._next_place_at = max(now - PLACES_AT_ONCE / PLACES_PER_S, self._next_place_at) + 1 / PLACES_PER_S
            return True

    def give_back(self, tenant: str) -> None:
        with self._lock:
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]
        self._count(-1)

    def until_ended(self, job_id: str, hold: Hold, seconds: float) -> None:
        """Wait for a job to end, for at most ``seconds``.  It goes on while Redis is away.  Raises Unauthorized."""
        deadline, looks = time.monotonic() + seconds, True
        seen: int | None = None
        with closing(self._watch.follow(job_id, hold, end_only=True)) as follower:
            while True:
                left = deadline - time.monotonic()
                try:
                    if left <= 0 or not hold.goes_on() or (looks and self._has_ended(job_id)):
                        return
                    version = follower.wait(seen, min(left, KEY_LOOK_S))
                    # None: its end was announced, which the record must bear out.
                    looks, seen = version != seen or version is None, version
                except QueueUnavailable:
                    hold.pause(min(left, LAST_LOOK_S))
                    looks = True

    def _has_ended(self, job_id: str) -> bool:
        status = self.statuses.of(job_id)
        return status is None or status.ended

    def until(self, is_so: Callable[[], bool], hold: Hold, seconds: float) -> None:
        """Wait until ``is_so`` returns true, for at most ``seconds``."""
        deadline, pause = time.monotonic() + seconds, FIRST_LOOK_S
        while hold.goes_on():
            so, left = is_so(), deadline - time.monotonic()
            if so or left <= 0:
                break
            hold.pause(min(pause, left))
            pause = min(pause * LOOK_GROWTH, LAST_LOOK_S)

    def _gather_s(self) -> float:
        return FIRST_LOOK_S if self.held() > MANY else 0


def preferred_wait_s(prefer: str | None) -> int | None:
    """Return the seconds of ``wait=N``; None when absent or not understood, which the RFC says to ignore."""
    found = re.search(r'(?:^|[,;])\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=$|[,;])', prefer or "", re.IGNORECASE)
    return int(found[1]) if found else None
