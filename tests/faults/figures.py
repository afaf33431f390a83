"""The figures of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from benchmarks.machine import percentile
from tests.faults.history import Accepted, Attempted, BatchAccepted, Broke, Counted, Notified, Refused, Shown, Sight
from tests.faults.promises import AFTERMATH_S, ENDED, STARTED, Verdict
from tests.faults.schedule import ALL


@dataclass(frozen=True, slots=True)
class Figures:
    """put_back_s: from a fault that broke an attempt until the job is requeued; recovery_s: until its next claim.

    exposed, taken: as in Verdict.  attempts: how each ended.  followed: jobs whose event stream was read to the end.
    untold: jobs and batches that ended but whose receiver was never notified.  told_twice: those whose end it answered
    2xx more than once.  faults: those that acted.  felled: how many of them killed, froze or cut off a process.
    excused: the share of the time from the first fault to the last in which a fault of Redis explained why any node's
    lease ran out.
    """

    jobs: int
    lost: int
    exposed: int
    taken: int
    doubled: int
    stuck: int
    untold: int
    told_twice: int
    broken_promises: int
    fenced: int
    requeued: int
    ends: dict[str, int]
    attempts: dict[str, int]
    executed_more_than_once: int
    followed: int
    batches: int
    batched_jobs: int
    submits_not_accepted: dict[str, int]
    webhooks: int
    webhooks_sent_again: int
    put_back_s: dict[str, float]
    recovery_s: dict[str, float]
    faults: dict[str, int]
    felled: int
    excused: float


def figures(history: Sequence[Sight], verdict: Verdict) -> Figures:
    """Summarise a history."""
    accepted = {sight.job for sight in history if isinstance(sight, Accepted)}
    totals = next((sight.totals for sight in history if isinstance(sight, Counted)), {})
    shown = [sight for sight in history if isinstance(sight, Shown)]
    last = {sight.job: sight.status for sight in shown if sight.way == "asked"}
    faults = [sight for sight in history if isinstance(sight, Broke) and sight.acted]
    attempts: dict[str, list[Attempted]] = defaultdict(list)
    for sight in history:
        if isinstance(sight, Attempted):
            attempts[sight.job].append(sight)
    notified = [sight for sight in history if isinstance(sight, Notified)]
    recoveries = [pause for tries in attempts.values() for pause in _recoveries(tries, faults)]
    refused = Counter(f"{sight.status} {sight.code}".strip() for sight in history if isinstance(sight, Refused))
    return Figures(
        jobs=len(accepted),
        lost=len(verdict.lost),
        exposed=len(verdict.exposed),
        taken=len(verdict.taken),
        doubled=len(verdict.doubled),
        stuck=len(verdict.stuck),
        untold=len(verdict.untold),
        told_twice=told_twice(notified),
        broken_promises=len(verdict.broken),
        fenced=totals.get("fenced", 0),
        requeued=totals.get("requeued", 0),
        ends=dict(Counter(status for job, status in last.items() if status in ENDED)),
        attempts=dict(Counter(attempt.outcome or "" for tries in attempts.values() for attempt in tries).most_common()),
        followed=len({sight.job for sight in shown if sight.way == "followed" and sight.status in ENDED}),
        executed_more_than_once=sum(len(tries) > 1 for tries in attempts.values()),
        batches=len({sight.batch for sight in history if isinstance(sight, BatchAccepted)}),
        batched_jobs=len({sight.job for sight in history if isinstance(sight, Accepted) and sight.batch}),
        submits_not_accepted=dict(refused),
        webhooks=len({sight.webhook_id for sight in notified}),
        webhooks_sent_again=len(notified) - len({sight.webhook_id for sight in notified}),
        put_back_s=_spread([put_back for put_back, _ in recoveries]),
        recovery_s=_spread([claimed for _, claimed in recoveries]),
        faults=dict(sorted(Counter(fault.name for fault in faults).items())),
        felled=felled(faults),
        excused=round(_excused(faults), 2),
    )


def told_twice(notified: Iterable[Notified]) -> int:
    """Count the jobs and batches for whose end a receiver answered 2xx to more than one webhook, whatever its id."""
    ends = Counter(sight.job for sight in notified if sight.event != STARTED and 200 <= sight.answered < 300)
    return sum(count > 1 for count in ends.values())


def felled(faults: Iterable[Broke]) -> int:
    """Count the faults that killed, froze or cut off a process."""
    kinds = {kind.name for kind in ALL if kind.fells}
    return sum(fault.name in kinds for fault in faults)


def as_fields(of: Figures) -> dict[str, object]:
    return asdict(of)


def _excused(faults: list[Broke]) -> float:
    """Return the share of a run in which a fault that every node meets explained a lost lease."""
    began, ended = min((fault.at for fault in faults), default=0.0), max((fault.until for fault in faults), default=0.0)
    covered, until = 0.0, began
    for fault in sorted((fault for fault in faults if fault.harms == "redis"), key=lambda fault: fault.at):
        end = min(ended, fault.until + AFTERMATH_S)
        covered += max(0.0, end - max(until, fault.at))
        until = max(until, end)
    return covered / (ended - began) if ended > began else 0.0


def _spread(values: list[float]) -> dict[str, float]:
    return {"count": len(values), **{f"p{part}": round(percentile(values, part), 2) for part in (50, 99) if values}}


def _recoveries(tries: list[Attempted], faults: list[Broke]) -> list[tuple[float, float]]:
    """For each attempt whose lease ran out: from the last fault that it met to its end, and to the next claim."""
    pauses = []
    for attempt, following in pairwise(tries):
        ended = attempt.ended
        if attempt.outcome != "lease_ran_out" or ended is None:
            continue
        met = [fault.at for fault in faults if attempt.started <= fault.until and fault.at <= ended]
        if met:
            began = max(attempt.started, max(met))
            pauses.append((ended - began, following.started - began))
    return pauses
