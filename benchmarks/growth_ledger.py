"""Measure what the ledger costs as records, workers and what has ended grow.

    python -m benchmarks.growth_ledger

With ``--running 5000`` it only measures a look at the fleet while so many jobs run, and keeps nothing.

A real Redis holds 1,000, 100,000 and 1,000,000 records of one tenant: at most 50,000 queued, the others ended, every
tenth of those failed; 5,000 workers are announced.  The ended ones are copies of two jobs which went through
the ledger, as all others do.  Each operation is timed, and its commands are counted, those inside scripts too.
Draws docs/pictures/growth_ledger.png.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import redis

from benchmarks.machine import ROOT, keep
from maskfleet.api.metrics import JobFigures, RequestMetrics
from maskfleet.jobs.fleet import FleetRules
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import Deliveries, Shares
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.fleet import Fleet
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.reconciler import Reconciler
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.record import JobRecord, Metrics, ProgressView, ResultSummary
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Stage, Status
from maskfleet.stack.servers import start_redis
from maskfleet.worker.courier.courier import RECONCILE_STEPS
from maskfleet.worker.courier.sweep import JOBS_AT_ONCE
from tests.jobs.commands import counted_commands

TENANT, MODEL, QUEUE, DAY_S = "bench", "bench", "sam.bench.normal", 24 * 3600
SPEC = (
    '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"model":"bench",'
    '"outputs":["coco"],"priority":"normal","metadata":{"order":"42"}}'
)
SIZES, WORKERS, RUNS = (1_000, 100_000, 1_000_000), 5_000, 50
#: Jobs that one call creates, and copies that one script makes.
STEP = 1_000
MOST_QUEUED = 50_000
INK = "#333333"

#: Copies an ended job: its record and place in the list.
#: ARGV: template id, tenant, first number, how many, life_ms
COPY = """
local fields = redis.call('HGETALL', 'mf:job:' .. ARGV[1])
local at = {}
for i = 1, #fields, 2 do at[fields[i]] = i + 1 end
local created_ms = tonumber(fields[at.created_ms])
for number = ARGV[3], ARGV[3] + ARGV[4] - 1 do
  local id = string.format('job_%032x', number)
  fields[at.id] = id
  redis.call('HSET', 'mf:job:' .. id, unpack(fields))
  redis.call('PEXPIRE', 'mf:job:' .. id, ARGV[5])
  redis.call('ZADD', 'mf:jobs:' .. ARGV[2], created_ms, id)
  redis.call('HINCRBY', 'mf:bytes:' .. ARGV[2], fields[at.held], fields[at.bytes])
end
"""


@dataclass(frozen=True)
class Sizes:
    """How much a measured ledger holds."""

    ended: int
    queued: int
    workers: int


class GrowingLedger:
    """A ledger that is filled further and further, and measured in between."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.ledger = Ledger(client, 7 * DAY_S)
        self.registry = WorkerRegistry(client)
        self.deliveries = Deliveries(client)
        self.reconciler = Reconciler(client, 7 * DAY_S)
        self.fleet = Fleet(client, self.registry)
        self.metrics = RequestMetrics(JobFigures(JobCounts(client), self.deliveries, self.fleet, Epoch(client)))
        self.copied = self.queued = self.workers = 0
        self.bytes: dict[str, float] = {}
        self.templates = [self._ended(fails=False), self._ended(fails=True)]
        self.running = self.claim()

    def create(self, jobs: int = 1) -> tuple[str, ...]:
        new = NewJobs(TENANT, QUEUE, (SPEC,) * jobs, DAY_S)
        return self.ledger.create(new, max_in_flight=10**9, idempotency_ttl_s=DAY_S, max_bytes=10**12).job_ids

    def claim(self) -> JobRecord:
        self.create()
        record = self.ledger.claim_next((QUEUE,), "node-1", lease_s=DAY_S, max_attempts=3).record
        assert record is not None
        return record

    def _ended(self, *, fails: bool) -> str:
        record = self.claim()
        if fails:
            self.ledger.fail(record, "image_corrupt", "The image file is damaged.")
        else:
            prefix = f"results/{TENANT}/{record.id}"
            metrics = Metrics(
                fetch_s=0.123, embed_s=1.234, decode_s=2.345, write_s=0.123, points=1024, points_per_batch=64
            )
            self.ledger.succeed(
                record,
                ResultSummary(
                    prefix=prefix, manifest_key=f"{prefix}/manifest.json", masks=42, best_score=0.99, metrics=metrics
                ),
            )
        return record.id

    def grow(self, sizes: Sizes) -> None:
        """Add jobs and workers until there are so many."""
        before, queued = self._memory(), self.queued
        while self.queued < sizes.queued:
            self.queued += len(self.create(min(STEP, sizes.queued - self.queued)))
        if self.queued > queued:
            self.bytes["queued"] = (self._memory() - before) / (self.queued - queued)
        before, copied = self._memory(), self.copied
        copy = self.client.register_script(COPY)
        while self.copied < sizes.ended:
            step = min(STEP, sizes.ended - self.copied)
            failed = step // 10
            for template, count in zip(self.templates, (step - failed, failed), strict=True):
                copy(args=[template, TENANT, self.copied, count, 7 * DAY_S * 1000])
                self.copied += count
        if self.copied > copied:
            self.bytes["ended"] = (self._memory() - before) / (self.copied - copied)
        for number in range(self.workers, sizes.workers):
            self.registry.announce(WorkerSeen(f"sam-gpu0@host-{number}", MODEL, "cuda", 12, 3))
        self.workers = max(self.workers, sizes.workers)

    def _memory(self) -> int:
        return int(cast("dict[str, int]", self.client.info("memory"))["used_memory"])

    def operations(self) -> dict[str, Callable[[], object]]:
        """Return what is measured, by name."""
        ledger, running = self.ledger, self.running
        places = self._places()
        shares = Shares(8, 24, {})
        progress = (ProgressView(stage=Stage.DECODING, done=done, total=10**9) for done in range(10**9))
        comparison: list[Iterator[object]] = []

        def courier_tick() -> None:
            ledger.reap(max_attempts=3)
            ledger.silent_queues()
            self.deliveries.due(32, lease_s=60, shares=shares)
            if not comparison:
                comparison.append(self.reconciler.steps())
            if len(list(islice(comparison[0], RECONCILE_STEPS))) < RECONCILE_STEPS:
                comparison.clear()

        return {
            "submit": self.create,
            "submit, claim and cancel": lambda: ledger.finish_canceled(self.claim()),
            "beat": lambda: ledger.beat(running, next(progress), lease_s=DAY_S),
            "list, newest 20": lambda: ledger.page_of(TENANT, limit=20),
            "list, 20 failed": lambda: ledger.page_of(TENANT, limit=20, status=Status.FAILED),
            "list, deep page": lambda: ledger.page_of(TENANT, after=next(places), limit=20),
            "count workers": lambda: self.registry.serving(MODEL),
            "/metrics": lambda: self.metrics.exposition((MODEL,), FleetRules()),
            "sweep, 200 jobs": lambda: ledger.ends([f"job_{number:032x}" for number in range(JOBS_AT_ONCE)]),
            "courier tick": courier_tick,
        }

    def _places(self) -> Iterator[tuple[int, str]]:
        """Yield places in the middle of the tenant's list."""
        while True:
            middle = self.client.zcard(f"mf:jobs:{TENANT}") // 2
            [(job_id, created_ms)] = cast(
                "list[tuple[str, float]]", self.client.zrange(f"mf:jobs:{TENANT}", middle, middle, withscores=True)
            )
            yield int(created_ms), job_id

    def commands(self) -> dict[str, int]:
        """Count the commands of each operation, once its script is loaded."""
        counts = {}
        for name, run in self.operations().items():
            run()
            with counted_commands(self.client) as commands:
                run()
            counts[name] = sum(commands.values())
        return counts

    def medians_ms(self, runs: int) -> dict[str, float]:
        medians = {}
        for name, run in self.operations().items():
            times = []
            for _ in range(runs):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
            medians[name] = round(statistics.median(times) * 1000, 3)
        return medians

    def look_at_fleet_ms(self, running: int) -> float:
        """Return how long a look at the fleet takes while so many jobs run, as a median."""
        self.create(running)
        for number in range(running - 1):
            node = f"sam-gpu0@host-{number}"
            assert self.ledger.claim_next((QUEUE,), node, lease_s=DAY_S, max_attempts=3).record is not None
        times = []
        for _ in range(RUNS):
            started = time.perf_counter()
            [load] = self.fleet.loads((MODEL,)).models
            times.append(time.perf_counter() - started)
        assert load.running == running
        return statistics.median(times) * 1000


def draw(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    records = [cast(int, row["records"]) for row in rows]
    medians = [cast("dict[str, float]", row["median_ms"]) for row in rows]
    for name, style in zip(medians[0], ("o-", "s-", "^-", "v-", "D-", "o--", "s--", "^--", "v--", "D--"), strict=True):
        axes.plot(records, [of[name] for of in medians], style, label=name, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="records", ylabel="median, ms", title="the ledger, 5,000 workers")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axes.tick_params(colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, nargs="+", default=SIZES)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--running", type=int, help="only measure a look at the fleet, while so many jobs run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = start_redis(Path(name) / "redis", log=Path(name) / "redis.log")
        with connect(SharedSettings(redis_url=server.url)) as client:
            client.config_set("appendonly", "no")  # its rewrites would be measured, too
            growing, rows = GrowingLedger(client), []
            if options.running:
                print(f"a look at the fleet: {growing.look_at_fleet_ms(options.running):.2f} ms")
                options.records = ()
            for records in options.records:
                queued = min(records // 10, MOST_QUEUED)
                growing.grow(Sizes(records - queued, queued, options.workers))
                row = {
                    "records": records,
                    "queued": queued,
                    "workers": options.workers,
                    "median_ms": growing.medians_ms(RUNS),
                    "commands": growing.commands(),
                    "bytes_per_record": {state: round(size) for state, size in growing.bytes.items()},
                    "used_memory_mb": round(int(cast("dict[str, int]", client.info("memory"))["used_memory"]) / 1e6),
                }
                rows.append(row)
        server.stop()
    if not rows:
        return
    if tuple(options.records) == SIZES:
        draw(rows, ROOT / "docs" / "pictures" / "growth_ledger.png")
        keep("growth_ledger", "python -m benchmarks.growth_ledger", rows)
    else:
        print(rows)


if __name__ == "__main__":
    main()
