"""One run: jobs under faults, then calm until everything has ended, then a check of everything that is left."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from tests.faults.caller import Callers
from tests.faults.faults import FaultKind, Scene
from tests.faults.faults.on_queue import bells_lost
from tests.faults.history import Accepted, Attempted, BatchAccepted, Believed, Counted, LeftOver
from tests.faults.laboratory import STAND_IN, TENANTS, Laboratory, Program
from tests.faults.promises import Verdict, check
from tests.faults.schedule import AT_THE_END, EMPTIED, shuffled, strike

#: Sends that many jobs over that many seconds, and continues until told to stop.
SendAll = Callable[[int, float, threading.Event], None]
#: How often a fault is tried until it finds something to break.
TRIES = 5
#: The batch that is sent last: more jobs than nodes can take at once.
LAST = (f"some points of a grid on {STAND_IN}", 12)
#: What a worker logs when the ledger confirmed the end of its attempt, and the outcome in the ledger.
ENDS_LOGGED = {"job_succeeded": "succeeded", "job_canceled": "canceled"}


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a run.

    seconds: over which the jobs are sent.  empties: whether Redis is emptied once, early on.  flood: so many more jobs
    come at once.  gap_s: the longest pause between two faults.  patience_s: how long everything may take to end after
    the last fault.
    """

    jobs: int
    seconds: float
    seed: int
    faults: tuple[FaultKind, ...]
    frozen_s: float = 4.0
    empties: bool = False
    flood: int = 0
    gap_s: float = 1.0
    patience_s: float = 240.0


def run(lab: Laboratory, plan: Plan, say: Callable[[str], None] = lambda _: None) -> Verdict:
    """Run the plan in a freshly started laboratory; check its history against the promises."""
    callers = Callers(lab, plan.seed, plan.flood)
    callers.learn_references()
    with callers.watching():
        scene = Scene(lab, random.Random(plan.seed), callers.hold, plan.frozen_s)
        send_under_fire(callers.send_all, scene, plan, say)
        if any(kind.act is bells_lost for kind in plan.faults):
            with ThreadPoolExecutor(1) as sender:
                sending = sender.submit(callers.send_batch, *LAST)  # so that there is a bell to lose
                say(strike(AT_THE_END, scene).effect)
                sending.result()
        await_end(lambda: callers.open_jobs() + _deliveries(lab), plan.patience_s, say)
    callers.look_at_all()
    _note_ledger(lab)
    return check(lab.history.read())


def send_under_fire(send_all: SendAll, scene: Scene, plan: Plan, say: Callable[[str], None]) -> None:
    """Send the plan's jobs while faults act, and more at the same pace until each has: most need a job to break."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as sender:
        sending = sender.submit(send_all, plan.jobs, plan.seconds, over)
        try:
            break_things(scene, plan, say)
        finally:
            over.set()
        sending.result()


def break_things(scene: Scene, plan: Plan, say: Callable[[str], None]) -> None:
    """Inject one fault after another: each at least once, and until the plan's time is over.

    A fault that found nothing to break is retried a few times, after longer and longer pauses: what the one before it
    broke may not work again yet, such as a store that is still starting, so that no job gets far enough.
    """
    ends = time.monotonic() + plan.seconds
    if plan.empties:
        time.sleep(min(5.0, plan.seconds / 10))
        broke = strike(EMPTIED, scene)
        say(f"{broke.name}: {broke.effect}")
    if not plan.faults:
        time.sleep(plan.seconds)
    following = shuffled(plan.faults, plan.seed)
    struck = 0
    while struck < len(plan.faults) or time.monotonic() < ends:
        kind = following()
        struck += 1
        for tried in range(TRIES):
            broke = strike(kind, scene)
            say(f"{'' if broke.acted else 'NOT '}{broke.name}: {broke.effect} ({broke.until - broke.at:.1f} s)")
            time.sleep(scene.random.uniform(0, plan.gap_s))
            if broke.acted:
                break
            time.sleep(min(2.0**tried, 4.0))


def await_end(left: Callable[[], int], patience_s: float, say: Callable[[str], None]) -> None:
    """Wait until nothing is left; the checker reports whatever is left at the deadline."""
    deadline = time.monotonic() + patience_s
    told = 0.0
    while (count := left()) and time.monotonic() < deadline:
        if time.monotonic() > told + 10:
            told = time.monotonic()
            say(f"{count} left")
        time.sleep(0.2)


def _deliveries(lab: Laboratory) -> int:
    return cast(int, lab.redis.zcard("mf:deliveries"))


def _note_ledger(lab: Laboratory) -> None:
    """Record what the ledger holds at the end: each attempt, the totals, and leftovers in its lists."""
    client, note = lab.redis, lab.history.note
    seen = lab.history.read()
    accepted = {sight.job for sight in seen if isinstance(sight, Accepted)}
    batches = {sight.batch: sight.key for sight in seen if isinstance(sight, BatchAccepted)}
    single_keys = {sight.key for sight in seen if isinstance(sight, Accepted) and not sight.batch}
    for job in accepted:
        for view in lab.ledger.attempts(job):
            ended = view.ended_at.timestamp() if view.ended_at else None
            note(
                Attempted(
                    job=job,
                    number=view.number,
                    worker=view.worker,
                    started=view.started_at.timestamp(),
                    ended=ended,
                    outcome=view.outcome,
                )
            )
    for node in lab.nodes:
        for sight in _ends_in_log(node):
            note(sight)
    records = set(client.scan_iter("mf:job:*", count=1000))
    keys = list(client.scan_iter("mf:idempotency:*", count=1000))
    for what, found, expected in (
        ("records", len(records), len(accepted)),
        ("batches", len(set(client.scan_iter("mf:batch:*", count=1000))), len(batches)),
        ("idempotency keys", len(keys), len(single_keys | set(batches.values()))),
        ("the tenants' lists", sum(client.zcard(f"mf:jobs:{tenant}") for tenant in TENANTS), len(accepted)),
    ):
        note(LeftOver(what=what, found=int(cast(int, found)), expected=expected, of_records=True))
    for what, found, expected in (
        ("records that no caller knows", len(records - {f"mf:job:{job}" for job in accepted}), 0),
        ("in flight", sum(client.scard(f"mf:inflight:{tenant}") for tenant in TENANTS), 0),
        ("queued", sum(client.zcard(key) for key in client.scan_iter("mf:queued:*")), 0),
        ("leases", client.zcard("mf:leases"), 0),
        ("returned", sum(client.zcard(key) for key in client.scan_iter("mf:returned:*")), 0),
        ("deadlines", client.zcard("mf:deadlines"), 0),
        ("webhooks to be sent", client.zcard("mf:deliveries"), 0),
        ("keys without expiry", _everlasting(lab), 0),
    ):
        note(LeftOver(what=what, found=int(cast(int, found)), expected=expected))
    totals = cast("dict[str, str]", client.hgetall("mf:totals"))
    note(Counted(totals={name: int(count) for name, count in totals.items()}))


def _ends_in_log(node: Program) -> Iterator[Believed]:
    """Read from a node's log which attempts were told that they ended their jobs."""
    for line in node.log.read_text(errors="replace").splitlines():
        with suppress(ValueError):  # not JSON: a traceback, or a line that a killed process left unfinished
            logged = json.loads(line)
            if isinstance(logged, dict) and (outcome := ENDS_LOGGED.get(logged.get("event", ""))):
                at = datetime.fromisoformat(logged["timestamp"]).timestamp()
                number, worker = logged["attempt"], logged["worker"]
                yield Believed(at=at, job=logged["job_id"], number=number, worker=worker, outcome=outcome)


def _everlasting(lab: Laboratory) -> int:
    """Count the keys of ended jobs that would never expire."""
    patterns = ("mf:job:*", "mf:batch:*", "mf:batch_jobs:*", "mf:delivery:*", "mf:idempotency:*")
    return sum(lab.redis.pttl(key) < 0 for pattern in patterns for key in lab.redis.scan_iter(pattern, count=1000))
