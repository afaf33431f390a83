"""Where queued jobs stand, and about when each will start."""

from __future__ import annotations

import redis

from maskfleet.jobs.ledger.connection import redis_errors
from maskfleet.jobs.queue import more_urgent_queues
from maskfleet.jobs.schema.record import JobRecord, QueuePlace


class QueuePlaces:
    """The places of queued jobs, by the pace of their queues."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def of(self, record: JobRecord, workers: int) -> QueuePlace | None:
        """Return a queued job's place, and about when it will start, from the pace of its queue.

        workers: how many drain that queue, after more urgent ones.  None when it is not queued.
        """
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.zrank(f"mf:queued:{record.queue}", record.id)
            pipeline.hget("mf:pace", record.queue)
            for queue in more_urgent_queues(record.queue):
                pipeline.zcard(f"mf:queued:{queue}")
            ahead, pace_ms, *urgent = pipeline.execute()
        if ahead is None:
            return None
        if pace_ms is None or workers == 0:
            return QueuePlace(ahead, None)
        return QueuePlace(ahead, (ahead + sum(urgent)) * int(pace_ms) / 1000 / workers)
