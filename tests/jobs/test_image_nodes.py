"""Which node is called to a new job: the one that has its image in memory, if it has nothing else to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Creation, NewBatch, NewJobs, NodeCall
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.record import JobRecord
from tests.jobs.commands import counted_commands
from tests.jobs.full_ledger import QUEUE, RESULT, SPEC, TENANT

NODE, OTHER_NODE, IMAGE, OTHER_IMAGE = "sam-gpu0@a", "sam-gpu0@b", "upl_" + "1" * 32, "upl_" + "2" * 32
MODEL = "m"
#: No test takes so long: a node that was called stays called.
CALL = NodeCall(MODEL, 600_000)
HELD_S = 600.0


def create(ledger: Ledger, image: str = IMAGE, tenant: str = TENANT, call: NodeCall | None = CALL) -> Creation:
    job = NewJobs(tenant, QUEUE, (SPEC % "click",), 600, images=(image,))
    return ledger.create(job, max_in_flight=99, idempotency_ttl_s=60, call=call)


def claim(ledger: Ledger, node: str = NODE) -> JobRecord:
    record = ledger.claim_next((QUEUE,), node, lease_s=600, max_attempts=3).record
    assert record is not None
    return record


def announce(worker_registry: WorkerRegistry, *nodes: str, model: str = MODEL, fault: str = "") -> None:
    for node in nodes:
        worker_registry.announce(WorkerSeen(node, model, "cpu", 12, 3, fault=fault))


@pytest.fixture
def next_node(ledger: Ledger, redis_client: redis.Redis) -> Callable[..., str]:
    """Says which node would be called to a job of an image, and leaves no trace of having asked."""

    def ask(image: str = IMAGE, tenant: str = TENANT, call: NodeCall | None = CALL) -> str:
        creation = create(ledger, image, tenant, call)
        ledger.cancel(creation.id, tenant)
        redis_client.delete(f"mf:called:{NODE}")
        return creation.node

    return ask


@pytest.fixture(autouse=True)
def _an_image_that_a_node_has(ledger: Ledger, worker_registry: WorkerRegistry) -> None:
    """The node has done a job of the image; another one is there as well."""
    announce(worker_registry, NODE, OTHER_NODE)
    create(ledger)
    ledger.succeed(claim(ledger), RESULT, image_held_s=HELD_S)


def test_the_node_that_did_the_last_job_of_an_image_is_called_to_the_next(
    ledger: Ledger, next_node: Callable[..., str]
) -> None:
    assert next_node() == NODE
    assert next_node(OTHER_IMAGE) == ""
    assert next_node(tenant="bee") == ""
    assert next_node(call=None) == ""

    create(ledger)
    ledger.succeed(claim(ledger, OTHER_NODE), RESULT, image_held_s=HELD_S)

    assert next_node() == OTHER_NODE


def test_only_a_job_that_succeeded_and_left_the_image_in_memory_counts(
    ledger: Ledger, next_node: Callable[..., str]
) -> None:
    for node in (NODE, OTHER_NODE):
        create(ledger, OTHER_IMAGE)
        record = claim(ledger, node)
        if node == NODE:
            ledger.fail(record, "image_corrupt", "It is damaged.")
        else:
            ledger.succeed(record, RESULT)

    assert next_node(OTHER_IMAGE) == ""


def test_a_node_that_has_a_job_is_not_waited_for(ledger: Ledger, next_node: Callable[..., str]) -> None:
    create(ledger, OTHER_IMAGE)
    running = claim(ledger)

    assert next_node() == ""
    ledger.release(running, delay_s=60, charged=False)
    assert next_node() == NODE


def test_a_node_whose_job_another_one_has_taken_over_is_not_busy(
    ledger: Ledger, redis_client: redis.Redis, next_node: Callable[..., str]
) -> None:
    create(ledger, OTHER_IMAGE)
    lost = claim(ledger)
    redis_client.zadd("mf:leases", {lost.id: 0}, xx=True)
    ledger.reap(max_attempts=3)
    assert claim(ledger, OTHER_NODE).id == lost.id

    assert next_node() == NODE


def test_a_node_that_takes_no_jobs_is_not_called(
    ledger: Ledger, worker_registry: WorkerRegistry, redis_client: redis.Redis, next_node: Callable[..., str]
) -> None:
    announce(worker_registry, NODE, fault="store_misconfigured")
    assert next_node() == ""
    announce(worker_registry, NODE)
    assert next_node() == NODE

    ledger.drain(NODE, 30)
    assert next_node() == ""
    ledger.undrain(NODE)
    assert next_node() == NODE

    redis_client.zincrby(f"mf:serving:{MODEL}", -31, NODE)  # as if it had been silent for so long
    assert next_node() == ""
    announce(worker_registry, NODE)
    worker_registry.withdraw(NODE)
    assert next_node() == ""


def test_a_node_with_another_model_is_not_called(next_node: Callable[..., str]) -> None:
    assert next_node(call=NodeCall("another", 600_000)) == ""


def test_a_node_is_called_to_one_job_at_a_time(ledger: Ledger, redis_client: redis.Redis) -> None:
    first, second = create(ledger), create(ledger)

    assert (first.node, second.node) == (NODE, "")
    assert redis_client.get(f"mf:called:{NODE}") == first.id
    assert 0 < redis_client.pttl(f"mf:called:{NODE}") <= CALL.wait_ms


def test_a_call_reserves_nothing(ledger: Ledger) -> None:
    created = create(ledger)
    assert created.node == NODE

    assert ledger.silent_queues() == {QUEUE: 1}  # a courier rings at its next tick, if nobody came or the API died
    assert claim(ledger, OTHER_NODE).id == created.id


def test_a_node_that_is_called_takes_what_is_next_and_knows_what_else_waits(ledger: Ledger) -> None:
    urgent = QUEUE.replace("normal", "interactive")
    [first] = ledger.create(
        NewJobs("bee", urgent, (SPEC % "urgent",), 600), max_in_flight=99, idempotency_ttl_s=60
    ).job_ids
    [older] = ledger.create(
        NewJobs("bee", QUEUE, (SPEC % "older",), 600), max_in_flight=99, idempotency_ttl_s=60
    ).job_ids
    created = create(ledger)
    assert created.node == NODE

    claims = [ledger.claim_next((urgent, QUEUE), NODE, lease_s=600, max_attempts=3) for _ in range(3)]

    order = [claim.record.id for claim in claims if claim.record]
    assert order[0] == first
    assert set(order) == {first, older, created.id}
    assert [(claim.more_in, claim.more) for claim in claims] == [(QUEUE, 2), (QUEUE, 1), ("", 0)]


def test_a_batch_and_a_job_sent_again_call_nobody(ledger: Ledger) -> None:
    specs = (SPEC % "one", SPEC % "two")
    batch = NewJobs(TENANT, QUEUE, specs, 600, batch=NewBatch(), images=(IMAGE, IMAGE))
    keyed = NewJobs(TENANT, QUEUE, specs[:1], 600, idempotency_key="k", body_digest="d", images=(IMAGE,))
    assert ledger.create(batch, max_in_flight=99, idempotency_ttl_s=60).node == ""
    ledger.create(keyed, max_in_flight=99, idempotency_ttl_s=60)

    assert ledger.create(keyed, max_in_flight=99, idempotency_ttl_s=60, call=CALL).node == ""


def test_what_is_known_of_an_image_is_forgotten_on_request_and_in_time(
    ledger: Ledger, redis_client: redis.Redis, next_node: Callable[..., str]
) -> None:
    assert 0 < redis_client.ttl(f"mf:image_node:{TENANT}:{IMAGE}") <= HELD_S

    ledger.forget_image_node(TENANT, IMAGE)

    assert next_node() == ""
    assert all(redis_client.pttl(key) > 0 for key in redis_client.keys("mf:latest:*"))


def test_asking_costs_one_command_and_naming_a_node_five(ledger: Ledger, redis_client: redis.Redis) -> None:
    def costs(image: str, call: NodeCall | None) -> int:
        with counted_commands(redis_client) as commands:
            create(ledger, image, call=call)
        return commands.total()

    create(ledger, OTHER_IMAGE)  # the tenant takes turns

    without = costs(IMAGE, None)
    assert costs(OTHER_IMAGE, CALL) == without + 1
    assert costs(IMAGE, CALL) == without + 5
