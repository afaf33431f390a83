"""Counts of jobs, for metrics.  Each costs O(1).  Those of each model are in fleet.py."""

from __future__ import annotations

from typing import cast

import redis

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

    def processing(self) -> int:
        """Count the running jobs."""
        with redis_errors():
            return self._redis.zcard("mf:leases")

    def lost_ms(self) -> int:
        """Return when a program noticed that this ledger is not the one before, by the ledger's time; 0 if none did."""
        with redis_errors():
            return int(cast("str | None", self._redis.hget("mf:epoch", "missed_ms")) or 0)
