"""Where queued jobs stand, and about when each will start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

import redis

from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.queue import more_urgent_queues
from maskfleet.jobs.schema.record import JobRecord, QueuePlace


class QueuePlaces:
    """The places of queued jobs, by the pace of their queues."""

    def __init__(self, client: redis.Redis, tenant_weights: Mapping[str, float] = MappingProxyType({})) -> None:
        """tenant_weights: as for the ledger."""
        self._weights = json.dumps(dict(tenant_weights))
        self._place = load_script(client, "place")

    def of(self, record: JobRecord, workers: int) -> QueuePlace | None:
        """Return a queued job's place, and about when it will start, from the pace of its queue.

        The place is right as long as no job comes or ends meanwhile; among very many tenants it is an estimate, so
        that it costs the same at any depth.  workers: how many drain that queue, after more urgent ones.  None when it
        is not queued.
        """
        more_urgent = more_urgent_queues(record.queue)
        with redis_errors():
            answer = self._place(args=[record.id, record.queue, record.tenant, self._weights, *more_urgent])
        if not answer:
            return None
        ahead, urgent, due_in_ms, pace_ms = answer
        if not pace_ms or workers == 0:
            return QueuePlace(ahead, None)
        return QueuePlace(ahead, max((ahead + urgent) * int(pace_ms) / workers, due_in_ms) / 1000)
