"""Measure how long jobs of one class wait while another class, or another tenant, has a long queue.

    python -m benchmarks.fairness

A real Redis and the real ledger decide which job is claimed next; the workers stand in for real ones: each claims a job
when it is idle and ends it a fixed time later, on a clock of the benchmark's own, so that a run takes seconds.  Each
job takes one second; all waits scale with the time that a job takes.
"""

from __future__ import annotations

import heapq
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from benchmarks.machine import keep
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.queue import model_queues, queue_name
from maskfleet.jobs.schema.record import JobRecord, Metrics, ResultSummary
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.servers import start_redis

MODEL, JOB_S, DAY_S = "bench", 1.0, 24 * 3600
SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"model":"bench"}'
RESULT = ResultSummary(prefix="p/", manifest_key="p/m", masks=0, best_score=None, metrics=Metrics())


@dataclass(frozen=True)
class Arrival:
    """Jobs that one tenant sends at once.  at: in seconds from the beginning."""

    at: float
    tenant: str
    priority: Priority
    jobs: int = 1


@dataclass
class Waits:
    """How long each job of a tenant and class waited, in seconds."""

    of: dict[tuple[str, Priority], list[float]] = field(default_factory=dict)

    def row(self, tenant: str, priority: Priority) -> dict[str, float]:
        waits = sorted(self.of[tenant, priority])
        return {
            "jobs": len(waits),
            "p50_s": round(statistics.median(waits), 2),
            "p95_s": round(waits[int(0.95 * (len(waits) - 1))], 2),
            "longest_s": round(waits[-1], 2),
        }


def simulate(client: redis.Redis, arrivals: Sequence[Arrival], workers: int, weights: dict[str, float]) -> Waits:
    """Let the arrivals be done by so many workers; return how long their jobs waited."""
    client.flushall()
    ledger = Ledger(client, 7 * DAY_S, weights)
    sent: dict[str, tuple[float, Arrival]] = {}
    waits = Waits()
    #: What happens next: an arrival, or the end of a job.
    events: list[tuple[float, int, Arrival | JobRecord]] = []
    for number, arrival in enumerate(arrivals):
        heapq.heappush(events, (arrival.at, number, arrival))
    idle, number = workers, len(arrivals)
    while events:
        now, _, event = heapq.heappop(events)
        if isinstance(event, Arrival):
            queue = queue_name(MODEL, event.priority)
            for begin in range(0, event.jobs, 1000):
                jobs = NewJobs(event.tenant, queue, (SPEC,) * min(1000, event.jobs - begin), DAY_S)
                created = ledger.create(jobs, max_in_flight=10**6, idempotency_ttl_s=DAY_S, max_bytes=10**12)
                sent |= dict.fromkeys(created.job_ids, (now, event))
        else:
            ledger.succeed(event, RESULT)
            idle += 1
        while idle:
            record = ledger.claim_next(model_queues(MODEL), f"node-{idle}", lease_s=DAY_S, max_attempts=3).record
            if record is None:
                break
            at, arrival = sent.pop(record.id)
            waits.of.setdefault((arrival.tenant, arrival.priority), []).append(now - at)
            idle -= 1
            number += 1
            heapq.heappush(events, (now + JOB_S, number, record))
    return waits


def interactive_before_bulk(client: redis.Redis, workers: int) -> list[dict[str, object]]:
    """500 bulk jobs are queued; 50 interactive ones of the same tenant come meanwhile, at random."""
    rows: list[dict[str, object]] = []
    chance = random.Random(7)
    times = sorted(chance.uniform(0, 500 * JOB_S / workers) for _ in range(50))
    for kind in (Priority.INTERACTIVE, Priority.BULK):
        late = [Arrival(at, "apiary", kind) for at in times]
        first = Arrival(0, "apiary", Priority.BULK, 500)
        waits = simulate(client, [first, *late], workers, {})
        if kind is Priority.BULK:  # without classes: they came last
            waits.of["apiary", kind] = waits.of["apiary", kind][-50:]
        rows.append({"what": f"50 {kind} jobs behind 500 bulk", "workers": workers, **waits.row("apiary", kind)})
    return rows


def flood(client: redis.Redis, workers: int, weight: float) -> list[dict[str, object]]:
    """One tenant sends 5,000 jobs, and ten seconds later another sends 20."""
    arrivals = [
        Arrival(0, "flood", Priority.NORMAL, 5000),
        Arrival(10.5 * JOB_S, "small", Priority.NORMAL, 20),
    ]
    waits = simulate(client, arrivals, workers, {"small": weight})
    what = f"flood of 5,000, and 20 of another tenant with weight {weight:g}"
    return [
        {"what": what, "tenant": tenant, "workers": workers, **waits.row(tenant, Priority.NORMAL)}
        for tenant in ("small", "flood")
    ]


def main() -> None:
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        server = start_redis(Path(name) / "redis", log=Path(name) / "redis.log")
        with connect(SharedSettings(redis_url=server.url)) as client:
            client.config_set("appendonly", "no")
            for workers in (1, 4):
                rows += interactive_before_bulk(client, workers)
                rows += flood(client, workers, 1)
            rows += flood(client, 4, 3)
        server.stop()
    for row in rows:
        print(row)
    keep("fairness", "python -m benchmarks.fairness", rows)


if __name__ == "__main__":
    main()
