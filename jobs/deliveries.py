"""Webhooks that have to be sent, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from jobs.connection import load_script, redis_errors
from jobs.spec import EventName


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that is due.  ``tries`` counts this one.  ``now_s``: Redis' clock, in seconds since the epoch."""

    id: str
    job_id: str
    event: EventName
    url: str
    tries: int
    now_s: int


class Deliveries:
    """The webhooks' queue.  An end of a job puts its webhook in, in the same script that ends the job."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._due = load_script(client, "due_deliveries")

    def due(self, limit: int = 20, *, lease_s: float = 60) -> list[Delivery]:
        """Take the webhooks that are due; one that is not reported on within ``lease_s`` is due again."""
        with redis_errors():
            flat = self._due(args=[limit, int(lease_s * 1000)])
        return [
            Delivery(delivery, job_id, EventName(event), url, int(tries), int(now_s))
            for delivery, job_id, event, url, tries, now_s in zip(*[iter(flat)] * 6, strict=True)
        ]

    def ended(self, delivery: Delivery, outcome: str) -> None:
        """Note that a webhook arrived, or was given up, and need not be sent again."""
        with redis_errors():
            pipeline = self._redis.pipeline()
            pipeline.zrem("mf:deliveries", delivery.id)
            pipeline.hset(f"mf:delivery:{delivery.id}", "outcome", outcome)
            pipeline.execute()

    def postponed(self, delivery: Delivery, delay_s: float) -> None:
        """Note that a webhook did not arrive and is to be sent again after a while."""
        with redis_errors():
            seconds, _ = self._redis.time()
            self._redis.zadd("mf:deliveries", {delivery.id: (seconds + delay_s) * 1000}, xx=True)

    def waiting(self) -> int:
        """Count the webhooks that have still to be sent."""
        with redis_errors():
            return self._redis.zcard("mf:deliveries")
