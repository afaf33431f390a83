"""What the ledger costs, and what it keeps, whatever has ended before and however large the fleet is."""

from __future__ import annotations

import redis

from benchmarks.growth_ledger import GrowingLedger, Sizes
from maskfleet.jobs.ledger.jobs import MAX_LOOKED_AT
from maskfleet.jobs.ledger.reconciler import STEP
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.worker.courier.courier import RECONCILE_STEPS
from tests.jobs.commands import counted_commands


def announce(worker_registry: WorkerRegistry, workers: range, model: str = "m") -> None:
    for number in workers:
        worker_registry.announce(WorkerSeen(f"sam-cpu@host-{number}", model, "cpu", 12, 3))


def test_counting_workers_costs_the_same_for_any_fleet(
    worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    announce(worker_registry, range(1))
    worker_registry.counts()  # loads its script
    with counted_commands(redis_client) as of_one:
        worker_registry.counts()
        worker_registry.find("sam-cpu@host-0")
        worker_registry.workers("host-0")
    announce(worker_registry, range(1, 500))
    with counted_commands(redis_client) as of_many:
        worker_registry.counts()
        worker_registry.find("sam-cpu@host-0")
        worker_registry.workers("host-0")

    assert of_many == of_one
    assert worker_registry.serving("m") == 500
    assert [seen.node for seen in worker_registry.workers("host-7")] == ["sam-cpu@host-7"]


def test_a_worker_is_counted_until_it_withdraws_or_is_not_heard_of(
    worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    announce(worker_registry, range(3))
    announce(worker_registry, range(3, 4), model="other")
    worker_registry.withdraw("sam-cpu@host-0")
    redis_client.zincrby("mf:serving:m", -31, "sam-cpu@host-1")  # as if it had been silent for so long
    silent = worker_registry.counts()

    announce(worker_registry, range(4, 5))

    assert silent == {"m": 1, "other": 1}
    assert worker_registry.counts() == {"m": 2, "other": 1}
    assert redis_client.zcard("mf:serving:m") == 2


def test_what_is_known_of_workers_expires_but_their_names(
    worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    announce(worker_registry, range(2))

    assert [key for key in redis_client.keys("mf:*") if redis_client.ttl(key) < 0] == ["mf:workers"]


def test_no_operation_costs_more_commands_as_records_and_workers_grow(redis_client: redis.Redis) -> None:
    growing = GrowingLedger(redis_client)
    growing.grow(Sizes(ended=2_000, queued=200, workers=50))
    few = growing.commands()

    growing.grow(Sizes(ended=10_000, queued=1_000, workers=250))
    many = growing.commands()

    # It looks at as much as it may, in either.
    bounded = {"list, 20 failed": MAX_LOOKED_AT + 50, "courier tick": RECONCILE_STEPS * 2 * STEP * 4}
    assert {name: many[name] for name in many if name not in bounded} == {
        name: few[name] for name in few if name not in bounded
    }
    assert {name: many[name] for name in bounded if many[name] > bounded[name]} == {}
