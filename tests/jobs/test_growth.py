"""What the ledger costs, and what it keeps, whatever has ended before and however large the fleet is."""

from __future__ import annotations

import redis

from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
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
