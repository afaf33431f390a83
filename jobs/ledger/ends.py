"""Hear of jobs as they end: every script that ends one publishes its id on a channel.

Nothing is kept for who does not listen, and a message may be lost with its connection.  So whoever waits for an end
also looks at the record: rarely while ends are heard, and each time that hearing begins.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing

import redis

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import redis_errors
from maskfleet.jobs.ledger.outages import OutageLog

#: ENDED in lua/keys.lua.
CHANNEL = "mf:ended"
#: A connection may look healthy and deliver nothing, as to a server that a failover has left behind.  So this often a
#: listener publishes a word of its own; a connection on which the last one has not come back by then is left.
CANARY_S = 5.0
#: How long it goes on when nobody wants it any more, since the next one may come soon.
LINGER_S = 30.0
#: How often it looks whether it is still wanted.
LOOK_S = 1.0
#: The pause before it connects again, doubled after each failure in a row, and up to as much again at random.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class Ends:
    """Listens on one connection, in a thread of its own that runs while it is wanted."""

    def __init__(self, client: redis.Redis, *, canary_s: float = CANARY_S, linger_s: float = LINGER_S) -> None:
        self._client = client
        self._canary_s, self._linger_s = canary_s, linger_s
        self._lock = threading.Lock()
        self._runs = False
        self._canary = uuid.uuid4().hex
        self._outage = OutageLog("hear")
        #: Whether a job that ends now is heard of.
        self.hears = False

    def listen(self, heard: Callable[[str], None], begun: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Listen until ``linger_s`` after ``wanted`` last returned true; a second call changes nothing meanwhile.

        heard: called with the id of each job that ends, and must not wait.  begun: called whenever ends are heard from
        now on; earlier ones may have been missed.
        """
        with self._lock:
            starts, self._runs = not self._runs, True
        if starts:
            threading.Thread(target=self._run, args=(heard, begun, wanted), name="ends", daemon=True).start()

    def _run(self, heard: Callable[[str], None], begun: Callable[[], None], wanted: Callable[[], bool]) -> None:
        wanted_at, pause_s = time.monotonic(), FIRST_PAUSE_S

        def goes_on() -> bool:
            nonlocal wanted_at
            with self._lock:  # so that a call of ``listen`` either is seen here, or starts another thread
                if wanted():
                    wanted_at = time.monotonic()
                self._runs = time.monotonic() - wanted_at < self._linger_s
                return self._runs

        def has_begun() -> None:
            nonlocal pause_s
            pause_s = FIRST_PAUSE_S
            self._outage.over()
            begun()

        try:
            while goes_on():
                try:
                    self._hear(heard, has_begun, goes_on)
                    continue
                except QueueUnavailable as error:
                    self._outage.note(error)
                except Exception as error:  # noqa: BLE001 — without this thread, each wait would end late
                    self._outage.broke(error)
                time.sleep(pause_s * random.uniform(1, 2))  # noqa: S311 — spreads processes out; no secret
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except BaseException:  # killed: the next one who waits starts another
            self._runs = False
            raise

    def _hear(self, heard: Callable[[str], None], begun: Callable[[], None], goes_on: Callable[[], bool]) -> None:
        """Listen on one connection.  Raises QueueUnavailable when it breaks, or delivers nothing."""
        with redis_errors(), closing(self._client.pubsub()) as channel:  # type: ignore[no-untyped-call]  # redis-py's
            try:
                channel.subscribe(CHANNEL)
                published_at = heard_at = time.monotonic()
                while goes_on():
                    message = channel.get_message(timeout=LOOK_S) or {"type": "none"}
                    if message["type"] == "subscribe":  # also when redis-py has connected again by itself
                        self.hears = True
                        begun()
                    elif message["type"] == "message" and message["data"] == self._canary:
                        heard_at = time.monotonic()
                    elif message["type"] == "message":
                        heard(message["data"])
                    if time.monotonic() - published_at > self._canary_s:
                        if heard_at < published_at:
                            raise redis.ConnectionError("The connection delivers nothing.")
                        published_at = time.monotonic()
                        self._client.publish(CHANNEL, self._canary)
            finally:
                self.hears = False
