"""The registry of workers: what each announces about itself, and when it last consumed work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import redis

from maskfleet.jobs.ledger.connection import load_script, redis_errors

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
    """The workers that announced themselves recently.  Counting them, or finding one, costs the same for any fleet."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._announce = load_script(client, "announce")
        self._serving = load_script(client, "serving")

    def announce(self, worker: WorkerSeen) -> None:
        """Announce a worker that is ready; repeat well within WORKER_TTL_S."""
        with redis_errors():
            self._announce(
                args=[
                    worker.node,
                    _host(worker.node),
                    worker.model,
                    WORKER_TTL_S,
                    worker.consumed_s_ago,
                    worker.device,
                    worker.pid,
                    worker.jobs,
                ]
            )

    def withdraw(self, node: str) -> None:
        """Remove a worker that shuts down.  Its name is kept until a courier has removed what else is left of it."""
        with redis_errors():
            model = cast("str | None", self._redis.hget(f"mf:worker:{node}", "model"))
            pipeline = self._redis.pipeline()
            if model is not None:
                pipeline.zrem(f"mf:serving:{model}", node)
            pipeline.zrem(f"mf:host:{_host(node)}", node)
            pipeline.delete(f"mf:worker:{node}")
            pipeline.execute()

    def workers(self, host: str = "") -> list[WorkerSeen]:
        """Return the workers of a host, or of all, which costs a read for each; sorted by name."""
        with redis_errors():
            key = f"mf:host:{host}" if host else "mf:workers"
            return self._read(sorted(cast("list[str]", self._redis.zrange(key, 0, -1))))

    def find(self, node: str) -> WorkerSeen | None:
        """Return one worker, or None if it has not announced itself recently."""
        with redis_errors():
            return next(iter(self._read([node])), None)

    def serving(self, model: str) -> int:
        """Count the workers that have a model loaded."""
        return self.counts((model,))[model]

    def counts(self, models: tuple[str, ...] = ()) -> dict[str, int]:
        """Count the workers that have each model loaded; without ``models``, each model that a worker has."""
        with redis_errors():
            flat = self._serving(args=[WORKER_TTL_S, *models])
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _read(self, nodes: list[str]) -> list[WorkerSeen]:
        seconds, _ = self._redis.time()
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


def _host(node: str) -> str:
    """Return the machine of a node that is named as in ``sam-gpu0@host``."""
    return node.rpartition("@")[2]
