"""Where a record must be before its caller is told that it was accepted: on replicas, on the disk, or in memory alone.

Redis answers before its replicas and its disk have what was written; a failover, or the end of its machine, may take
that back.  WAIT and WAITAOF wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import redis

from maskfleet.jobs.errors import NotConfirmed
from maskfleet.jobs.ledger.connection import redis_errors
from maskfleet.jobs.logs import get_logger

logger = get_logger()


@dataclass(frozen=True, slots=True)
class Durability:
    """replicas: how many must have a write.  aof: whether the primary's disk must.  Both are waited for ``wait_s``."""

    replicas: int = 0
    aof: bool = False
    wait_s: float = 1.0

    def confirm(self, client: redis.Redis, key: str, field: str, value: str | None = None) -> None:
        """Wait until a field that was just written is where it must be; value: what it must be, if that matters.

        Raises NotConfirmed, QueueUnavailable.
        """
        if not self.replicas and not self.aof:
            return
        # All on one connection, whichever connection wrote the field: WAIT and WAITAOF wait for the last write of
        # their own connection, and what it writes here comes after the field.  The field is read after that: behind
        # the same address may be another server by now, which never had it.
        pipeline = client.pipeline(transaction=False)
        pipeline.set("mf:confirmed", "1")
        pipeline.hget(key, field)
        wait_ms = int(self.wait_s * 1000)
        if self.replicas:
            pipeline.wait(self.replicas, wait_ms)
        if self.aof:
            pipeline.waitaof(1, 0, wait_ms)
        with redis_errors():
            _, found, *reached = pipeline.execute(raise_on_error=False)
            for answer in (found, *reached):
                if isinstance(answer, redis.RedisError):
                    raise answer
        replicas = reached[0] if self.replicas else 0
        on_disk = reached[-1][0] if self.aof else 0
        is_there = found is not None if value is None else found == value
        if not is_there or replicas < self.replicas or on_disk < self.aof:
            logger.warning("record_not_confirmed", key=key, is_there=is_there, replicas=replicas, on_disk=bool(on_disk))
            raise NotConfirmed
