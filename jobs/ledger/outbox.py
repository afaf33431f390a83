"""The outbox: jobs whose message may have to be published again.

A job is in it from its creation until its claim, so that a message lost by Redis, the API or a dying worker
is published again.
"""

from __future__ import annotations

import redis

from maskfleet.jobs.ledger.connection import load_script, redis_errors

#: The API publishes at once; the courier checks after this long whether it did.
PUBLISH_GRACE_MS = 5_000


class Outbox:
    """Jobs that still have to be published."""

    def __init__(self, client: redis.Redis, republish_s: float) -> None:
        """republish_s: a published job that nobody claims is checked after this long, then twice as long, and so on."""
        self._redis = client
        self._republish_ms = int(republish_s * 1000)
        self._published = load_script(client, "published")
        self._due = load_script(client, "due_publishes")

    def published(self, job_id: str) -> None:
        """Record that a job's message is in the queue; it is due again only if nobody claims it."""
        with redis_errors():
            self._published(args=[job_id, self._republish_ms])

    def due(self, limit: int = 100) -> list[tuple[str, str]]:
        """Take the (job id, queue) pairs whose message is missing.

        While a queue holds at least as many messages as jobs wait for it, none is missing: a long queue is not made
        longer.
        """
        with redis_errors():
            flat = self._due(args=[limit, self._republish_ms])
        return list(zip(flat[::2], flat[1::2], strict=True))

    def waiting(self) -> int:
        """Count the jobs that are due to be published."""
        with redis_errors():
            seconds, _ = self._redis.time()
            return self._redis.zcount("mf:outbox", "-inf", seconds * 1000)
