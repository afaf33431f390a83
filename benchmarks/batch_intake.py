"""Measure what a batch of many images costs while couriers expand it: memory, the time of a step, what Redis holds.

    python -m benchmarks.batch_intake

A manifest of 100,000 lines lies in a real S3; a courier's work on batches is called as in its ticks.  In the place of
workers, each queued job is canceled, which ends it, and is collected as any other.
"""

from __future__ import annotations

import argparse
import json
import resource
import secrets
import tempfile
import time
from pathlib import Path
from typing import cast

import redis

from benchmarks.machine import keep
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewBatch, NewJobs
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.schema.batch_spec import BatchPlan, BatchSource
from maskfleet.jobs.settings import CourierSettings, SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.servers import start_redis, start_s3
from maskfleet.worker.courier.batches import BatchWork

TENANT, QUEUE, BUCKET, PHOTOS = "bench", "sam.bench.bulk", "maskfleet", "photos"
LINES, RECORD_S = 100_000, 30
SECRET = secrets.token_hex(16)
SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"model":"bench"}'


def rss_mb() -> float:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def used_mb(client: redis.Redis) -> float:
    return int(cast("dict[str, int]", client.info("memory"))["used_memory"]) / 1e6


def take_in(client: redis.Redis, settings: CourierSettings, lines: int) -> dict[str, object]:
    """Expand a manifest to its end, and measure each step."""
    photos = Store(SharedSettings(**{**settings.model_dump(include={"s3_endpoint", "s3_access_key", "s3_secret_key"}),
                                     "bucket": PHOTOS}))  # fmt: skip
    text = "\n".join(json.dumps({"image": {"s3_uri": f"s3://{PHOTOS}/tiles/{n:06}.png"}}) for n in range(lines))
    photos.put("tiles.jsonl", text.encode(), "application/jsonl")
    head = photos.head("tiles.jsonl")
    assert head is not None
    plan = BatchPlan(
        source=BatchSource(manifest=f"s3://{PHOTOS}/tiles.jsonl"),
        spec=SPEC,
        queue=QUEUE,
        bucket=BUCKET,
        start_deadline_s=3600,
        max_in_flight=10_000,
        max_bytes=2**30,
        coco=False,
        etag=head.etag,
        size=head.size,
    )
    ledger, batches, store = Ledger(client, 7 * 24 * 3600), Batches(client), Store(settings)
    batch = NewBatch(source="{}", plan=plan.model_dump_json(exclude_none=True), most_open=9)
    new = NewJobs(TENANT, QUEUE, (), 3600, batch=batch)
    batch_id = ledger.create(new, max_in_flight=10_000, idempotency_ttl_s=60).id
    work = BatchWork(ledger, batches, store, Bells(client, Publisher(settings)), settings)
    del text
    rss_before, redis_before = rss_mb(), used_mb(client)
    steps: list[float] = []
    most_open = 0
    most_mb = redis_before
    began = time.monotonic()
    while (record := batches.read(batch_id)) is not None and record.ended_ms is None:
        client.zadd("mf:batch_work", {batch_id: 0}, xx=True)
        started = time.perf_counter()
        batch_due = batches.take(60)
        assert batch_due == batch_id
        work._step(batch_id, lambda: False)
        steps.append(time.perf_counter() - started)
        open_jobs = batches.open_jobs(batch_id)
        most_open, most_mb = max(most_open, len(open_jobs)), max(most_mb, used_mb(client))
        for job_id in open_jobs:
            ledger.cancel(job_id, TENANT)
    assert record is not None
    assert (record.listed, record.counts.canceled) == (lines, lines)
    steps.sort()
    return {
        "lines": lines,
        "seconds": round(time.monotonic() - began, 1),
        "steps": len(steps),
        "step_median_ms": round(steps[len(steps) // 2] * 1000, 1),
        "step_longest_ms": round(steps[-1] * 1000, 1),
        "most_jobs_open": most_open,
        "process_grew_mb": round(rss_mb() - rss_before, 1),
        "redis_grew_mb_at_most": round(most_mb - redis_before, 1),
        "record_kept_s": settings.batch_record_s,
        "batch_record_bytes": client.memory_usage(f"mf:batch:{batch_id}"),
        "pages_bytes": client.memory_usage(f"mf:batch_pages:{batch_id}", samples=0),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=LINES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        redis_server = start_redis(folder / "redis", log=folder / "redis.log")
        s3 = start_s3(
            folder / "s3",
            access_key="bench",
            secret_key=SECRET,
            buckets=(BUCKET, PHOTOS),
            log=folder / "s3.log",
        )
        settings = CourierSettings(
            redis_url=redis_server.url,
            s3_endpoint=s3.url,
            s3_access_key="bench",
            s3_secret_key=SECRET,
            bucket=BUCKET,
            allowed_buckets=PHOTOS,
            batch_record_s=RECORD_S,
        )
        with connect(settings) as client:
            client.config_set("appendonly", "no")
            row = take_in(client, settings, options.lines)
        s3.stop()
        redis_server.stop()
    print(row)
    if options.lines == LINES:
        keep("batch_intake", "python -m benchmarks.batch_intake", [row])


if __name__ == "__main__":
    main()
