"""What a run came to, in figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from benchmarks.machine import percentile
from tests.faults.history import Accepted, Attempted, Broke, Counted, Notified, Refused, Shown, Sight
from tests.faults.promises import ENDED, Verdict


@dataclass(frozen=True, slots=True)
class Figures:
    """put_back_s: from a fault that broke an attempt to the job's being queued again; recovery_s: to its next claim.

    attempts: how each ended.  followed: jobs whose stream of events was read to their end.
    """

    jobs: int
    lost: int
    doubled: int
    stuck: int
    broken_promises: int
    fenced: int
    requeued: int
    ends: dict[str, int]
    attempts: dict[str, int]
    executed_more_than_once: int
    followed: int
    submits_not_accepted: dict[str, int]
    webhooks: int
    webhooks_sent_again: int
    put_back_s: dict[str, float]
    recovery_s: dict[str, float]
    faults: dict[str, int]


def figures(history: Sequence[Sight], verdict: Verdict) -> Figures:
    """Sum a history up."""
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
        doubled=len(verdict.doubled),
        stuck=len(verdict.stuck),
        broken_promises=len(verdict.broken),
        fenced=totals.get("fenced", 0),
        requeued=totals.get("requeued", 0),
        ends=dict(Counter(status for job, status in last.items() if status in ENDED)),
        attempts=dict(Counter(attempt.outcome or "" for tries in attempts.values() for attempt in tries).most_common()),
        followed=len({sight.job for sight in shown if sight.way == "followed" and sight.status in ENDED}),
        executed_more_than_once=sum(len(tries) > 1 for tries in attempts.values()),
        submits_not_accepted=dict(refused),
        webhooks=len({sight.webhook_id for sight in notified}),
        webhooks_sent_again=len(notified) - len({sight.webhook_id for sight in notified}),
        put_back_s=_spread([put_back for put_back, _ in recoveries]),
        recovery_s=_spread([claimed for _, claimed in recoveries]),
        faults=dict(sorted(Counter(fault.name for fault in faults).items())),
    )


def as_fields(of: Figures) -> dict[str, object]:
    return asdict(of)


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
