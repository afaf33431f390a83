"""What the ledger knows of each model's jobs and workers."""

from __future__ import annotations

import pytest
import redis

from maskfleet.jobs.fleet import ClassLoad, WorkerCounts
from maskfleet.jobs.ledger.fleet import Fleet
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.workers import WORKER_TTL_S, WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.schema.spec import Priority
from tests.jobs.commands import counted_commands
from tests.jobs.full_ledger import RESULT, SPEC

QUEUE = "sam.m.normal"


@pytest.fixture
def fleet(redis_client: redis.Redis, worker_registry: WorkerRegistry) -> Fleet:
    return Fleet(redis_client, worker_registry)


def create(ledger: Ledger, jobs: int = 1, queue: str = QUEUE) -> None:
    ledger.create(
        NewJobs("ant", queue, tuple(SPEC % number for number in range(jobs)), 600),
        max_in_flight=10_000,
        idempotency_ttl_s=60,
    )


def claim(ledger: Ledger, node: str = "node-1", queue: str = QUEUE) -> JobRecord:
    record = ledger.claim_next((queue,), node, lease_s=60, max_attempts=3).record
    assert record is not None
    return record


def announce(worker_registry: WorkerRegistry, node: str, *, loads: bool = False, fault: str = "") -> None:
    worker_registry.announce(WorkerSeen(node, "m", "cpu", 12, 3, loads=loads, fault=fault, version="1.2"))


def of_class(fleet: Fleet, priority: Priority = Priority.NORMAL) -> ClassLoad:
    [load] = fleet.loads(("m",)).models
    return next(one for one in load.classes if one.priority is priority)


def test_queued_and_running_jobs_are_counted_by_class(fleet: Fleet, ledger: Ledger) -> None:
    create(ledger, 3)
    create(ledger, 2, "sam.m.bulk")
    create(ledger, 1, "sam.another.normal")
    claim(ledger)

    [load] = fleet.loads(("m",)).models

    assert [(one.priority, one.queued, one.running) for one in load.classes] == [
        (Priority.INTERACTIVE, 0, 0),
        (Priority.NORMAL, 2, 1),
        (Priority.BULK, 2, 0),
    ]
    assert 0 < load.classes[1].oldest_s < 60
    assert load.classes[0].oldest_s == 0


def test_the_age_is_of_the_oldest_job(fleet: Fleet, ledger: Ledger, redis_client: redis.Redis) -> None:
    create(ledger, 2)
    oldest = redis_client.zrange(f"mf:queued:{QUEUE}", 0, 0)[0]
    redis_client.zincrby(f"mf:queued:{QUEUE}", -100_000, oldest)

    assert of_class(fleet).oldest_s == pytest.approx(100, abs=10)


def test_a_job_is_measured_once_one_has_succeeded(fleet: Fleet, ledger: Ledger, redis_client: redis.Redis) -> None:
    create(ledger)
    record = claim(ledger)
    before = of_class(fleet).job_s
    redis_client.hincrby(f"mf:job:{record.id}", "claimed_ms", -4_000)

    ledger.succeed(record, RESULT)

    assert before is None
    assert of_class(fleet).job_s == pytest.approx(4, abs=1)


def test_workers_are_counted_by_state(fleet: Fleet, ledger: Ledger, worker_registry: WorkerRegistry) -> None:
    announce(worker_registry, "loading", loads=True)
    announce(worker_registry, "ready-1")
    announce(worker_registry, "ready-2")
    announce(worker_registry, "wrong", fault="clock_wrong: off")
    announce(worker_registry, "leaving")
    ledger.drain("leaving", grace_s=25)
    announce(worker_registry, "leaving")

    [load] = fleet.loads(("m",)).models

    assert load.workers == WorkerCounts(starting=1, ready=2, draining=1, withdrawn=1)
    assert worker_registry.serving("m") == 2
    assert {seen.node: seen.state for seen in worker_registry.workers(loading=True)} == {
        "leaving": "draining",
        "loading": "starting",
        "ready-1": "ready",
        "ready-2": "ready",
        "wrong": "withdrawn",
    }


def test_a_worker_is_in_one_state_at_a_time_and_says_since_when(
    fleet: Fleet, worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    announce(worker_registry, "node-1", loads=True)
    redis_client.hincrby("mf:worker:node-1", "since_ms", -50_000)
    [loading] = worker_registry.workers(loading=True)
    announce(worker_registry, "node-1", loads=True)
    [still_loading] = worker_registry.workers(loading=True)
    found_while_loading = worker_registry.find("node-1")

    announce(worker_registry, "node-1")

    ready = worker_registry.find("node-1")
    assert found_while_loading is None
    assert ready is not None
    assert still_loading.since_ms == loading.since_ms
    assert ready.since_ms is not None
    assert loading.since_ms is not None
    assert ready.since_ms >= loading.since_ms + 50_000
    assert (ready.version, ready.seen_s_ago) == ("1.2", pytest.approx(0, abs=2))
    assert fleet.loads(("m",)).models[0].workers == WorkerCounts(ready=1)
    worker_registry.withdraw("node-1")
    assert fleet.loads(("m",)).models[0].workers == WorkerCounts()


def test_a_worker_that_was_not_heard_of_is_not_counted(
    fleet: Fleet, worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    announce(worker_registry, "silent", loads=True)
    announce(worker_registry, "loading", loads=True)

    redis_client.zincrby("mf:starting:m", -WORKER_TTL_S - 1, "silent")

    assert fleet.loads(("m",)).models[0].workers == WorkerCounts(starting=1)


def test_jobs_of_a_worker_that_shuts_down_are_told_apart(
    fleet: Fleet, ledger: Ledger, worker_registry: WorkerRegistry
) -> None:
    create(ledger, 3)
    claim(ledger, "staying")
    leaving = claim(ledger, "leaving")
    ledger.drain("leaving", grace_s=25)
    announce(worker_registry, "leaving")

    draining = of_class(fleet)
    ledger.release(leaving, delay_s=0, charged=False)
    handed_back = of_class(fleet)

    assert (draining.queued, draining.running, draining.draining) == (1, 2, 1)
    assert (handed_back.queued, handed_back.running, handed_back.draining) == (2, 1, 0)


def test_models_that_workers_have_loaded_are_shown_after_those_that_are_asked_for(
    fleet: Fleet, worker_registry: WorkerRegistry
) -> None:
    announce(worker_registry, "node-1")
    worker_registry.announce(WorkerSeen("node-2", "retired", "cpu", 12, 3))

    assert [load.model for load in fleet.loads(("first", "m")).models] == ["first", "m", "retired"]


def test_running_jobs_are_listed_by_their_workers(fleet: Fleet, ledger: Ledger) -> None:
    create(ledger, 2)
    first, second = claim(ledger, "node-1"), claim(ledger, "node-2")

    assert fleet.loads(("m",), list_jobs=True).jobs == {"node-1": first.id, "node-2": second.id}
    assert fleet.loads(("m",)).jobs == {}


def test_a_look_costs_one_read_for_each_running_job_and_none_for_others(
    fleet: Fleet, ledger: Ledger, redis_client: redis.Redis
) -> None:
    create(ledger, 3)
    claim(ledger)
    fleet.loads(("m",))  # loads its script
    with counted_commands(redis_client) as of_few:
        fleet.loads(("m",))
    create(ledger, 500)
    claim(ledger, "node-2")

    with counted_commands(redis_client) as of_many:
        fleet.loads(("m",))

    assert of_many - of_few == {"hmget": 1}


def test_a_worker_of_an_earlier_version_is_read_too(
    fleet: Fleet, worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    """It writes no state, and renews what a newer program on the same node left."""
    announce(worker_registry, "node-1", loads=True)
    redis_client.hincrby("mf:worker:node-1", "seen", -WORKER_TTL_S - 1)
    announce(worker_registry, "node-2", fault="clock_wrong: off")
    redis_client.hdel("mf:worker:node-2", "state", "since_ms", "seen", "version")

    first, second = worker_registry.workers()

    assert (first.state, first.version, first.since_ms, first.seen_s_ago) == ("ready", "", None, None)
    assert not first.loads
    assert (second.state, second.version) == ("withdrawn", "")
