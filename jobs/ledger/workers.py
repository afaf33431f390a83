"""The registry of workers: what each announces about itself, and when it last consumed work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import redis

from maskfleet.jobs.ledger.connection import load_script, redis_errors

#: A worker that has not announced itself for this long is no longer counted.
WORKER_TTL_S = 30
#: Faults of a node longer ago than this say nothing of it today.
FAULTS_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that announced itself recently.

    pid: of the process that holds the model.  jobs: how many it has done.  consumed_s_ago: seconds since it last
    took a message or renewed a lease, by Redis' clock; 0 when it announces itself.  fault: why it has withdrawn and
    takes no jobs; empty while it does.
    """

    node: str
    model: str
    device: str
    pid: int
    jobs: int
    consumed_s_ago: int = 0
    fault: str = ""


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
                    worker.fault,
                ]
            )

    def withdraw(self, node: str) -> None:
        """Remove a worker that shuts down.  Its name is kept until a courier has removed what else is left of it."""
        with redis_errors():
            model = cast("str | None", self._redis.hget(f"mf:worker:{node}", "model"))
            pipeline = self._redis.pipeline()
            if model is not None:
                pipeline.zrem(f"mf:serving:{model}", node)
                pipeline.zrem(f"mf:withdrawn:{model}", node)
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

    def faults(self, node: str) -> int:
        """Return how many faults of its own a node met in a row; restarts of its processes do not reset it."""
        with redis_errors():
            return int(cast("str | None", self._redis.get(f"mf:worker:{node}:faults")) or 0)

    def set_faults(self, node: str, count: int) -> None:
        with redis_errors():
            self._redis.set(f"mf:worker:{node}:faults", count, ex=FAULTS_TTL_S)

    def clock_ahead_s(self) -> float:
        """Return how far this machine's clock is ahead of Redis', in seconds."""
        with redis_errors():
            seconds, microseconds = self._redis.time()
        return time.time() - seconds - microseconds / 1e6

    def serving(self, model: str) -> int:
        """Count the workers that have a model loaded."""
        return self.counts((model,))[model]

    def counts(self, models: tuple[str, ...] = ()) -> dict[str, int]:
        """Count the workers that have each model loaded and take jobs; without ``models``, each that a worker has."""
        with redis_errors():
            flat = self._serving(args=[WORKER_TTL_S, *models])
        return dict(zip(flat[::3], flat[1::3], strict=True))

    def withdrawn(self) -> dict[str, int]:
        """Count the workers of each model that have withdrawn and take no jobs."""
        with redis_errors():
            flat = self._serving(args=[WORKER_TTL_S])
        return dict(zip(flat[::3], flat[2::3], strict=True))

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
                fault=fields.get("fault", ""),
            )
            for node, fields in zip(nodes, pipeline.execute(), strict=True)
            if fields
        ]


def _host(node: str) -> str:
    """Return the machine of a node that is named as in ``sam-gpu0@host``."""
    return node.rpartition("@")[2]
