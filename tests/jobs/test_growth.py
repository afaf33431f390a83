"""What the ledger costs, and what it keeps, whatever has ended before and however large the fleet is."""

from __future__ import annotations

import pytest
import redis

from benchmarks.growth_ledger import GrowingLedger, Sizes
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import MAX_LOOKED_AT, Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.reconciler import STEP
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.delivery import DeliveryState
from maskfleet.jobs.schema.record import ProgressView
from maskfleet.jobs.schema.spec import EventName, Webhook
from maskfleet.jobs.status import Stage
from maskfleet.worker.courier.courier import RECONCILE_STEPS
from tests.jobs.commands import counted_commands
from tests.jobs.full_ledger import QUEUE, RESULT, SPEC, TENANT
from tests.taking import take_due


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


def life(ledger: Ledger, deliveries: Deliveries, client: redis.Redis, webhook: Webhook | None) -> dict[str, int]:
    """Lead a job to its end; return how many commands each step ran.  Its webhooks are sent together, after its end."""
    counts = {}
    with counted_commands(client) as commands:
        ledger.create(NewJobs(TENANT, QUEUE, (SPEC % "one",), 600, webhook), max_in_flight=9, idempotency_ttl_s=60)
    counts["create"] = commands.total()
    with counted_commands(client) as commands:
        record = ledger.claim_next((QUEUE,), "node-1", lease_s=60, max_attempts=3).record
    assert record is not None
    counts["claim"] = commands.total()
    for done in range(3):
        with counted_commands(client) as commands:
            ledger.beat(record, ProgressView(stage=Stage.DECODING, done=done, total=9), lease_s=60)
        counts[f"beat {done}"] = commands.total()
    with counted_commands(client) as commands:
        ledger.succeed(record, RESULT)
    counts["end"] = commands.total()
    if webhook:
        with counted_commands(client) as commands:
            for due in take_due(deliveries, 10):
                deliveries.keep_body(due, "{}")
                deliveries.ended(due, DeliveryState.DELIVERED)
        counts["send"] = commands.total()
    return counts


BEATS = {f"beat {done}": 6 for done in range(3)}


@pytest.mark.parametrize(
    ("webhook", "costs"),
    [
        (None, {"create": 15, "claim": 14, **BEATS, "end": 13}),
        (
            Webhook(url="https://example.com/hook", events=(EventName.SUCCEEDED,)),
            {"create": 15, "claim": 14, **BEATS, "end": 23, "send": 52},
        ),
    ],
    ids=["without a webhook", "with one"],
)
def test_each_step_of_a_jobs_life_runs_so_many_commands(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis, webhook: Webhook | None, costs: dict[str, int]
) -> None:
    life(ledger, deliveries, redis_client, webhook)  # loads the scripts; and the tenant takes turns

    assert life(ledger, deliveries, redis_client, webhook) == costs
