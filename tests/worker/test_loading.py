"""A node that loads its model is known to the fleet, and takes no jobs yet."""

from __future__ import annotations

import pytest
import redis

from maskfleet.jobs.fleet import WorkerCounts
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.fleet import Fleet
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.node.health import why_not_ready
from maskfleet.worker.node.loading import announced_as_loading, program_version
from tests.api.caller import a_closed_port
from tests.waiting import wait_until

SETTINGS = WorkerSettings(node="node-1", model="/models/m")


def test_it_is_counted_as_starting_until_it_is_loaded(
    worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    fleet = Fleet(redis_client, worker_registry)

    def counts() -> WorkerCounts:
        return fleet.loads(("m",)).models[0].workers

    with announced_as_loading(worker_registry, SETTINGS):
        wait_until(lambda: counts() == WorkerCounts(starting=1))
        [loading] = worker_registry.workers(loading=True)
        reason = why_not_ready(worker_registry.workers(), "node-1", ready_within_s=60)
    worker_registry.announce(WorkerSeen("node-1", "m", "cpu", 12, 0, version=program_version()))

    assert (loading.state, loading.version) == ("starting", program_version())
    assert "loading" in str(reason)
    assert worker_registry.serving("m") == 1
    assert counts() == WorkerCounts(ready=1)


def test_a_model_that_cannot_be_loaded_leaves_the_error_to_its_caller(worker_registry: WorkerRegistry) -> None:
    with pytest.raises(RuntimeError, match="broken"), announced_as_loading(worker_registry, SETTINGS):
        raise RuntimeError("broken")


def test_without_redis_a_model_is_loaded_all_the_same() -> None:
    settings = WorkerSettings(redis_url=f"redis://127.0.0.1:{a_closed_port()}/0")  # type: ignore[arg-type]  # pydantic reads it

    with announced_as_loading(WorkerRegistry(connect(settings)), settings):
        loaded = True

    assert loaded
