"""Measure what it costs to wait for a replica, or for the disk, when a job is recorded.

    python -m benchmarks.durability

A primary and its replica run on this machine.  The ways take turns within one run, so that whatever disturbs
the machine disturbs all of them; the ratios are to recording without waiting.  WAITAOF under everysec is left out: this
Valkey confirms too early there (docs/operations.md).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import redis

from benchmarks.machine import keep, percentile
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.durability import Durability
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.servers import start_redis

WAYS = {
    "no waiting": ("everysec", Durability()),
    "appendfsync always": ("always", Durability()),
    "one replica": ("everysec", Durability(replicas=1, wait_s=4)),
    "disk, appendfsync always": ("always", Durability(aof=True, wait_s=4)),
    "one replica and disk, appendfsync always": ("always", Durability(replicas=1, aof=True, wait_s=4)),
}
ROUNDS = 10
#: Jobs recorded in a row in each round.
JOBS = 100
SPEC = '{"mode":"point","image":{"s3_uri":"s3://photos/bee.jpg"},"prompts":[{"points":[[10,10]]}]}'


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        primary = start_redis(folder / "one", log=folder / "one.log", options={"repl-diskless-sync-delay": 0})
        replica = start_redis(folder / "two", log=folder / "two.log")
        try:
            with redis.Redis(port=replica.port, decode_responses=True) as client:
                client.replicaof("127.0.0.1", str(primary.port))
                while client.info("replication")["master_link_status"] != "up":
                    time.sleep(0.05)
            took_ms = measure(primary.url)
        finally:
            replica.stop()
            primary.stop()
    usual_ms = statistics.median(took_ms["no waiting"])
    figures = {
        way: {
            "jobs": len(times),
            "p50_ms": round(statistics.median(times), 3),
            "p99_ms": round(percentile(times, 99), 3),
            "ratio_p50": round(statistics.median(times) / usual_ms, 2),
        }
        for way, times in took_ms.items()
    }
    keep("durability", "python -m benchmarks.durability", figures)


def measure(url: str) -> dict[str, list[float]]:
    """Return how long each job took to be recorded, in ms, for each way."""
    client = connect(SharedSettings(redis_url=url))
    took_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_ in range(-1, ROUNDS):
        for way, (fsync, durability) in WAYS.items():
            client.config_set("appendfsync", fsync)
            ledger = Ledger(client, 3600, durability=durability)
            for _ in range(JOBS):
                started = time.perf_counter()
                jobs = NewJobs("bench", "sam.nobody.normal", (SPEC,), start_deadline_s=600)
                ledger.create(jobs, max_in_flight=10**9, idempotency_ttl_s=60)
                if round_ >= 0:  # the first warms up
                    took_ms[way].append((time.perf_counter() - started) * 1000)
    return took_ms


if __name__ == "__main__":
    main()
