"""The fleet as the ledger sees it: what each model's workers have to do, and who they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from maskfleet.jobs.fleet import OUTPUTS, ClassLoad, ModelLoad, WorkerCounts
from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.ledger.workers import WORKER_TTL_S, WorkerRegistry
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.spec import Priority


@dataclass(frozen=True, slots=True)
class Loads:
    """What each model's workers have to do.  jobs: worker → the job that it runs; empty unless asked for."""

    models: tuple[ModelLoad, ...]
    jobs: dict[str, str]


class Fleet:
    """What the models' workers have to do.  Looking costs a read for each running job, however many are queued."""

    def __init__(self, client: redis.Redis, worker_registry: WorkerRegistry) -> None:
        self._worker_registry = worker_registry
        self._fleet = load_script(client, "fleet")

    def loads(self, models: Sequence[str], *, list_jobs: bool = False) -> Loads:
        """Return what the workers of these models have to do, and of others that workers have loaded.

        models: OUTPUTS may be among them; it comes last.

        Raises QueueUnavailable.
        """
        named = dict.fromkeys((*models, *sorted(self._worker_registry.loaded())))
        names = tuple(sorted(named, key=lambda name: name == OUTPUTS))
        ask = {
            "ttl_s": WORKER_TTL_S,
            "list_jobs": list_jobs,
            "shared": OUTPUTS,
            "models": [
                {"name": name, "queues": [queue_name(name, priority) for priority in Priority]} for name in names
            ],
        }
        with redis_errors():
            found, now_ms, jobs = self._fleet(args=[json.dumps(ask)])
        loads = tuple(_load(name, answer, int(now_ms)) for name, answer in zip(names, found, strict=True))
        return Loads(loads, dict(zip(jobs[::2], jobs[1::2], strict=True)))


def _load(model: str, answer: list[Any], now_ms: int) -> ModelLoad:  # Any: five counts, then a list for each class
    starting, ready, draining, withdrawn, elsewhere, *classes = answer
    return ModelLoad(
        model,
        tuple(
            ClassLoad(
                priority,
                queued=int(queued),
                running=int(running),
                draining=int(of_draining),
                oldest_s=max(0.0, now_ms - float(oldest_ms)) / 1000 if oldest_ms != "" else 0.0,
                job_s=float(pace_ms) / 1000 if pace_ms != "" else None,
            )
            for priority, (queued, oldest_ms, pace_ms, running, of_draining) in zip(Priority, classes, strict=True)
        ),
        WorkerCounts(starting, ready, draining, withdrawn, elsewhere),
    )
