"""Counts of jobs, for metrics and autoscaling.  Each costs O(1)."""

from __future__ import annotations

from typing import cast

import redis

from maskfleet.jobs.ledger.clock import ledger_now_ms
from maskfleet.jobs.ledger.connection import redis_errors


class JobCounts:
    """Counts of current and past jobs."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def totals(self) -> dict[str, int]:
        """Return counts since the ledger began: created, each end, fenced, requeued, retried, rung, webhooks_…."""
        with redis_errors():
            counts = cast("dict[str, str]", self._redis.hgetall("mf:totals"))
        return {name: int(count) for name, count in counts.items() if not name.startswith("pace:")}

    def queued(self, queues: tuple[str, ...]) -> dict[str, int]:
        """Count the waiting jobs, by queue."""
        with redis_errors():
            return {queue: self._redis.zcard(f"mf:queued:{queue}") for queue in queues}

    def oldest_queued_s(self, queues: tuple[str, ...]) -> dict[str, float]:
        """Return the age of the oldest waiting job, by queue; 0 for an empty one."""
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            now_ms = ledger_now_ms(self._redis)
            for queue in queues:
                pipeline.zrange(f"mf:queued:{queue}", 0, 0, withscores=True)
            oldest = pipeline.execute()
        ages = (max(0.0, (now_ms - first[0][1]) / 1000) if first else 0.0 for first in oldest)
        return dict(zip(queues, ages, strict=True))

    def processing(self) -> int:
        """Count the running jobs."""
        with redis_errors():
            return self._redis.zcard("mf:leases")

    def lost_ms(self) -> int:
        """Return when a program noticed that this ledger is not the one before, by the ledger's time; 0 if none did."""
        with redis_errors():
            return int(cast("str | None", self._redis.hget("mf:epoch", "missed_ms")) or 0)
