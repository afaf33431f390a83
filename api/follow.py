"""Those who follow jobs, looked after together: one look at the ledger and at the clients' sockets serves many.

A follower sleeps until its job has changed or its client has hung up.  If each looked for itself, thousands would keep
the process busy with nothing but waking up.  Ends are announced (jobs/ledger/ends.py), and wake those who follow the
job at once; other changes are found by looking.
"""

from __future__ import annotations

import heapq
import itertools
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from maskfleet.jobs.errors import JobError, QueueUnavailable
from maskfleet.jobs.ledger.ends import Ends

#: A job is looked at often at first, then less and less: a change is noticed at once, a long job costs little.
FIRST_LOOK_S, LAST_LOOK_S, LOOK_GROWTH = 0.02, 0.5, 1.3
#: Looks after the longest pause that are due within this time are taken together.
GATHER_S = 0.05
#: While ends are heard of, who waits for nothing else has the ledger asked this often, in case one was missed.
MISSED_S = 2.0
#: Jobs in one look: about a millisecond's work, after which others have a turn.
AT_ONCE = 100


class Client(Protocol):
    """Whoever a response is sent to."""

    def connection(self) -> socket.socket | None:
        """Return its socket while that tells whether it is there."""

    def hear(self) -> bool:
        """Read into what has come from it; return False when it has hung up."""


class Follower:
    """Follows one job, until ``close``."""

    def __init__(self, watch: Watch, job_id: str, client: Client, *, end_only: bool) -> None:
        self.job_id, self.client, self.end_only = job_id, client, end_only
        #: No version: the first wait has it looked at.
        self.seen: int | None = -1
        self.version: int | None = None
        self.pause = FIRST_LOOK_S
        #: Whether its job's end was announced since it last woke up.
        self.ended = False
        #: When its job was last looked at.
        self.asked_at = time.monotonic()
        self.error: JobError | None = None
        #: The number of its entry among those that are due; an older entry counts no more.  -1: it follows no more.
        self.entry = 0
        self.woken = threading.Event()
        self._watch = watch

    def wait(self, seen: int | None, seconds: float) -> int | None:
        """Wait until the record's version is not ``seen``, for at most ``seconds``; return the version.

        Returns None at once when its end is announced, which says no version.  Returns early when the client has hung
        up, and when the process must end.  Raises QueueUnavailable.
        """
        # A look at this very moment may be missed; the next one is not, since it compares versions as well.
        self.woken.clear()
        changed, self.seen, self.version = seen != self.seen, seen, seen
        if not self.ended:
            if changed:
                self._watch.look_soon(self)
            self.woken.wait(seconds)
        if self.ended:
            self.ended = False
            return None
        if self.error is not None:
            raise self.error
        return self.version

    def close(self) -> None:
        """Stop following."""
        self._watch.leave(self)


class Watch:
    """Looks after followers in a thread of its own, which runs while there are any."""

    def __init__(self, ask: Callable[[Sequence[str]], list[int | None]], ends: Ends | None = None) -> None:
        """ask: returns the version of each job's record; raises QueueUnavailable.  ends: None to hear of none."""
        self._ask, self._ends = ask, ends
        self._poll: Callable[[], select.poll] = select.poll
        self._stopping: Callable[[], bool] = lambda: False
        self._lock = threading.Lock()
        self._followers: set[Follower] = set()
        self._of_job: dict[str, set[Follower]] = {}
        self._due: list[tuple[float, int, Follower]] = []
        self._entries = itertools.count(1)
        self._sooner = threading.Event()
        self._runs = False

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Wake all followers as soon as ``stopping`` returns true."""
        self._stopping = stopping

    def poll_by(self, poll: Callable[[], select.poll]) -> None:
        """Poll sockets by this, without waiting.  An event loop's own poll would make a watcher for each socket."""
        self._poll = poll

    def follow(self, job_id: str, client: Client, *, end_only: bool = False) -> Follower:
        """Follow a job, for a client that is told of its changes, or only of its end."""
        follower = Follower(self, job_id, client, end_only=end_only)
        with self._lock:
            self._followers.add(follower)
            self._of_job.setdefault(job_id, set()).add(follower)
            starts, self._runs = not self._runs, True
        if self._ends is not None:
            self._ends.listen(self._hear_of_end, self._look_at_all, lambda: bool(self._followers))
        if starts:
            threading.Thread(target=self._run, name="watch", daemon=True).start()
        return follower

    def leave(self, follower: Follower) -> None:
        """Forget a follower.  May be called twice."""
        with self._lock:
            follower.entry = -1
            self._followers.discard(follower)
            of_job = self._of_job.get(follower.job_id, set())
            of_job.discard(follower)
            if not of_job:
                self._of_job.pop(follower.job_id, None)

    def look_soon(self, follower: Follower) -> None:
        """Look at a follower's job as often as at a new one's; not if all that it waits for is announced."""
        follower.pause = LAST_LOOK_S if self._is_told(follower) else FIRST_LOOK_S
        self._put(follower)
        self._sooner.set()

    def _is_told(self, follower: Follower) -> bool:
        return follower.end_only and self._ends is not None and self._ends.hears

    def _hear_of_end(self, job_id: str) -> None:
        """Wake those who follow a job that has ended."""
        with self._lock:
            followers = tuple(self._of_job.get(job_id, ()))
        for follower in followers:
            follower.ended = True
            follower.woken.set()

    def _look_at_all(self) -> None:
        """Look at all jobs soon: ends may have been missed."""
        with self._lock:
            followers = tuple(self._followers)
        for follower in followers:
            follower.pause, follower.asked_at = FIRST_LOOK_S, 0.0
            self._put(follower)
        self._sooner.set()

    def _put(self, follower: Follower) -> None:
        with self._lock:
            if follower in self._followers:
                follower.entry = next(self._entries)
                due = time.monotonic() + follower.pause
                if follower.pause >= LAST_LOOK_S:
                    due = math.ceil(due / GATHER_S) * GATHER_S
                heapq.heappush(self._due, (due, follower.entry, follower))

    def _run(self) -> None:
        try:
            while self._goes_on():
                due = self._take()
                if due:
                    self._look(due)
        finally:  # also when it is killed, or finds a fault: nobody would wake them
            with self._lock:
                self._runs, left = False, list(self._followers)
            for follower in left:
                follower.error = QueueUnavailable()
                follower.woken.set()

    def _goes_on(self) -> bool:
        """Sleep until looks are due; return False when nobody follows any more."""
        if self._stopping():
            for follower in list(self._followers):
                follower.woken.set()
        with self._lock:
            if not self._followers:
                self._runs = False
                self._due.clear()
                return False
            wait_s = self._due[0][0] - time.monotonic() if self._due else LAST_LOOK_S
        if wait_s > FIRST_LOOK_S:
            self._sooner.wait(min(wait_s, LAST_LOOK_S))
            self._sooner.clear()
        elif wait_s > 0:
            time.sleep(FIRST_LOOK_S)
        return True

    def _take(self) -> list[Follower]:
        """Return the followers whose jobs are due to be looked at, AT_ONCE at most."""
        now = time.monotonic()
        taken: list[Follower] = []
        with self._lock:
            while self._due and self._due[0][0] <= now and len(taken) < AT_ONCE:
                _, entry, follower = heapq.heappop(self._due)
                if entry == follower.entry:
                    taken.append(follower)
        return taken

    def _look(self, followers: list[Follower]) -> None:
        now = time.monotonic()
        asking = [one for one in followers if not self._is_told(one) or now - one.asked_at >= MISSED_S]
        job_ids = list(dict.fromkeys(follower.job_id for follower in asking))
        error: JobError | None = None
        versions: dict[str, int | None] = {}
        try:
            versions = dict(zip(job_ids, self._ask(job_ids), strict=True)) if job_ids else {}
        except JobError as refusal:
            error = refusal
        for follower in asking:
            follower.asked_at = now if error is None else 0.0
            follower.error, follower.version = error, versions.get(follower.job_id)
            if error is not None or follower.version != follower.seen:
                follower.woken.set()
        for follower in self._gone(followers):
            follower.woken.set()
        for follower in followers:
            follower.pause = min(follower.pause * LOOK_GROWTH, LAST_LOOK_S)
            self._put(follower)

    def _gone(self, followers: list[Follower]) -> set[Follower]:
        """Return those whose clients have hung up."""
        gone, by_file, poll = set[Follower](), dict[int, Follower](), self._poll()
        for follower in followers:
            client = follower.client.connection()
            if client is None:
                continue
            file = client.fileno()
            if file < 0:  # closed on this side
                gone.add(follower)
                continue
            by_file[file] = follower
            poll.register(file, select.POLLIN)
        for file, _ in poll.poll(0) if by_file else ():
            if not by_file[file].client.hear():
                gone.add(by_file[file])
        return gone
