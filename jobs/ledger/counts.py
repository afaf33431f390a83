"""Counts of jobs, for metrics and for those who scale fleets.  Each costs O(1)."""

from __future__ import annotations

from typing import cast

import redis

from maskfleet.jobs.ledger.connection import redis_errors


class Census:
    """How many jobs there are, and were."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def totals(self) -> dict[str, int]:
        """Count since the beginning: created, each way to end, fenced, requeued and retried attempts, webhooks_…."""
        with redis_errors():
            counts = cast("dict[str, str]", self._redis.hgetall("mf:totals"))
        return {name: int(count) for name, count in counts.items()}

    def queued(self, queues: tuple[str, ...]) -> dict[str, int]:
        """Count the jobs that wait, by queue."""
        with redis_errors():
            return {queue: self._redis.zcard(f"mf:queued:{queue}") for queue in queues}

    def processing(self) -> int:
        """Count the jobs that are running."""
        with redis_errors():
            return self._redis.zcard("mf:leases")
