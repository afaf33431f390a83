"""The registry of workers: what each announces about itself, and when it last consumed work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import redis

from maskfleet.jobs.ledger.connection import redis_errors

#: A worker that has not announced itself for this long is no longer counted.
WORKER_TTL_S = 30


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that announced itself recently.

    pid: of the process that holds the model.  jobs: how many it has done.  consumed_s_ago: seconds since it last
    took a message or renewed a lease, by Redis' clock; 0 when it announces itself.
    """

    node: str
    model: str
    device: str
    pid: int
    jobs: int
    consumed_s_ago: int = 0


class WorkerRegistry:
    """The workers that announced themselves recently."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def announce(self, worker: WorkerSeen) -> None:
        """Announce a worker that is ready; repeat well within WORKER_TTL_S."""
        with redis_errors():
            seconds, _ = self._redis.time()
            fields = {
                "model": worker.model,
                "device": worker.device,
                "pid": worker.pid,
                "jobs": worker.jobs,
                "consumed": seconds - worker.consumed_s_ago,
            }
            pipeline = self._redis.pipeline()
            pipeline.zadd("mf:workers", {worker.node: seconds})
            for name, value in fields.items():
                pipeline.hset(f"mf:worker:{worker.node}", name, str(value))
            pipeline.expire(f"mf:worker:{worker.node}", WORKER_TTL_S)
            pipeline.zremrangebyscore("mf:workers", "-inf", seconds - WORKER_TTL_S)
            pipeline.execute()

    def withdraw(self, node: str) -> None:
        """Remove a worker that shuts down."""
        with redis_errors():
            self._redis.zrem("mf:workers", node)
            self._redis.delete(f"mf:worker:{node}")

    def workers(self) -> list[WorkerSeen]:
        """Return the workers, sorted by name."""
        with redis_errors():
            seconds, _ = self._redis.time()
            nodes = sorted(cast("list[str]", self._redis.zrange("mf:workers", 0, -1)))
            pipeline = self._redis.pipeline(transaction=False)
            for node in nodes:
                pipeline.hgetall(f"mf:worker:{node}")
            return [
                WorkerSeen(
                    node=node,
                    model=fields["model"],
                    device=fields["device"],
                    pid=int(fields["pid"]),
                    jobs=int(fields["jobs"]),
                    consumed_s_ago=max(0, seconds - int(fields["consumed"])),
                )
                for node, fields in zip(nodes, pipeline.execute(), strict=True)
                if fields
            ]

    def serving(self, model: str) -> int:
        """Count the workers that have a model loaded."""
        return sum(worker.model == model for worker in self.workers())
