"""Batches: jobs recorded together and counted together, with one webhook when the last has ended.

Ledger.create records them.  The scripts that change their jobs' states also update their counts: see
jobs/ledger/lua/batches.lua.
"""

from __future__ import annotations

from typing import cast

import redis

from maskfleet.jobs.ledger.connection import redis_errors
from maskfleet.jobs.schema.batch import BatchRecord


class Batches:
    """The batches' records."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def read(self, batch_id: str) -> BatchRecord | None:
        """Return the record, or None if there is none, or it has expired."""
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(f"mf:batch:{batch_id}"))
        return BatchRecord.from_fields(batch_id, fields) if fields else None

    def job_ids(self, batch_id: str) -> tuple[str, ...]:
        """Return the ids of a batch's jobs, in the order of its images."""
        with redis_errors():
            return tuple(cast("list[str]", self._redis.lrange(f"mf:batch_jobs:{batch_id}", 0, -1)))
