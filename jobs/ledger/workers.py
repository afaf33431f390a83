"""The registry of workers: what each announces about itself, and when it last consumed work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

import redis

from maskfleet.jobs.fleet import OUTPUTS
from maskfleet.jobs.ledger.connection import load_script, redis_errors

#: A worker that has not announced itself for this long is no longer counted.
WORKER_TTL_S = 30
#: Faults of a node longer ago than this say nothing of it today.
FAULTS_TTL_S = 3600
#: The sets that a model's workers are counted in, each in one of them.
_COUNTED = ("starting", "serving", "draining_nodes", "withdrawn")


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that announced itself recently.

    pid: of the process that holds the model.  jobs: how many it has done.  consumed_s_ago: seconds since it last
    took a message or renewed a lease, by Redis' clock; 0 when it announces itself.  fault: why it has withdrawn and
    takes no jobs; empty while it does.  loads: whether it still loads its model.  version: of its program; empty for
    one from before versions were announced.  start_s: how long its process took until it was ready; None before.
    outputs: whether it takes jobs that need no model besides those of its own.

    What the registry adds: its state (``starting``, ``ready``, ``draining``, ``withdrawn``), since when it is in it,
    and how long ago it was seen.
    """

    node: str
    model: str
    device: str
    pid: int
    jobs: int
    consumed_s_ago: int = 0
    fault: str = ""
    loads: bool = False
    version: str = ""
    start_s: float | None = None
    outputs: bool = field(default=False, compare=False)
    state: str = field(default="", compare=False)
    since_ms: int | None = field(default=None, compare=False)
    seen_s_ago: int | None = field(default=None, compare=False)


class WorkerRegistry:
    """The workers that announced themselves recently.  Counting them, or finding one, costs the same for any fleet."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._announce = load_script(client, "announce")
        self._serving = load_script(client, "serving")

    def announce(self, worker: WorkerSeen) -> None:
        """Announce a worker that is ready, or loads its model; repeat well within WORKER_TTL_S."""
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
                    int(worker.loads),
                    worker.version,
                    "" if worker.start_s is None else f"{worker.start_s:.3f}",
                    OUTPUTS if worker.outputs and worker.model != OUTPUTS else "",
                ]
            )

    def withdraw(self, node: str) -> None:
        """Remove a worker that shuts down.  Its name is kept until a courier has removed what else is left of it."""
        with redis_errors():
            model = cast("str | None", self._redis.hget(f"mf:worker:{node}", "model"))
            pipeline = self._redis.pipeline()
            if model is not None:
                for state in _COUNTED:
                    pipeline.zrem(f"mf:{state}:{model}", node)
                pipeline.zrem(f"mf:serving:{OUTPUTS}", node)
            pipeline.zrem(f"mf:host:{_host(node)}", node)
            pipeline.delete(f"mf:worker:{node}")
            pipeline.execute()

    def workers(self, host: str = "", *, loading: bool = False) -> list[WorkerSeen]:
        """Return the workers of a host, or of all, which costs a read for each; sorted by name.

        loading: whether to return those that still load their model, too.
        """
        with redis_errors():
            key = f"mf:host:{host}" if host else "mf:workers"
            seen = self._read(sorted(cast("list[str]", self._redis.zrange(key, 0, -1))))
        return [worker for worker in seen if loading or not worker.loads]

    def find(self, node: str) -> WorkerSeen | None:
        """Return one worker, or None if it has not announced itself recently, or still loads its model."""
        with redis_errors():
            return next((worker for worker in self._read([node]) if not worker.loads), None)

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

    def loaded(self) -> list[str]:
        """Return the models that a worker has loaded, or loads."""
        with redis_errors():
            since_s = self._redis.time()[0] - WORKER_TTL_S
            return cast("list[str]", self._redis.zrange("mf:models", since_s, "+inf", byscore=True))

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
        found = zip(nodes, pipeline.execute(), strict=True)
        return [_seen(node, fields, seconds) for node, fields in found if fields]


def _seen(node: str, fields: dict[str, str], now_s: int) -> WorkerSeen:
    seen_s_ago = max(0, now_s - int(fields["seen"])) if "seen" in fields else None
    # A program of an earlier version renews the record without these fields; then they are another program's.
    is_own = seen_s_ago is not None and seen_s_ago <= WORKER_TTL_S
    return WorkerSeen(
        node=node,
        model=fields["model"],
        device=fields["device"],
        pid=int(fields["pid"]),
        jobs=int(fields["jobs"]),
        consumed_s_ago=max(0, now_s - int(fields["consumed"])),
        fault=fields.get("fault", ""),
        loads=is_own and fields["state"] == "starting",
        version=fields["version"] if is_own else "",
        start_s=float(fields["start_s"]) if is_own and fields.get("start_s") else None,
        state=fields["state"] if is_own else "withdrawn" if fields.get("fault") else "ready",
        since_ms=int(fields["since_ms"]) if is_own else None,
        seen_s_ago=seen_s_ago if is_own else None,
    )


def _host(node: str) -> str:
    """Return the machine of a node that is named as in ``sam-gpu0@host``."""
    return node.rpartition("@")[2]
