"""The queues of jobs that need no model: who drains them, in which order, and how that is counted."""

from __future__ import annotations

import pytest
import redis

from maskfleet.jobs.fleet import OUTPUTS, FleetRules, WorkerCounts
from maskfleet.jobs.ledger.fleet import Fleet
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.queue import UrgencyCycle, canary_queue, model_queues, node_queues, served_by
from maskfleet.jobs.schema.fleet import ModelFleet
from maskfleet.jobs.settings import ApiSettings, WorkerSettings

SPEC = '{"mode":"everything","image":{"upload_id":"upl_%032d"}}'
GPU = WorkerSeen("sam-gpu0@a", "m", "cuda", 1, 0, outputs=True)


def create(ledger: Ledger, queue: str) -> str:
    jobs = NewJobs(tenant="ant", queue=queue, specs_json=(SPEC % 1,), start_deadline_s=60)
    return ledger.create(jobs, max_in_flight=9, idempotency_ttl_s=60).id


def test_a_node_drains_them_after_its_models_own_of_each_class() -> None:
    drained = node_queues("org/m", outputs=True)

    assert drained == (
        *("sam.org-m.interactive", "sam.outputs.interactive", "sam.org-m.normal", "sam.outputs.normal"),
        *("sam.org-m.bulk", "sam.outputs.bulk"),
    )
    cycle = UrgencyCycle([*reversed(drained), canary_queue("node-1")])
    assert cycle.consume(9) == [canary_queue("node-1"), *drained]
    assert node_queues("org/m", outputs=False) == model_queues("org/m")
    assert node_queues(OUTPUTS, outputs=True) == model_queues(OUTPUTS)


@pytest.mark.parametrize(
    ("queue", "counted_by"), [("sam.outputs.bulk", OUTPUTS), ("sam.m.bulk", "m"), ("sam.my-outputs.bulk", "m")]
)
def test_a_queues_workers_are_counted_by_model_or_by_what_stands_for_one(queue: str, counted_by: str) -> None:
    assert served_by(queue, "m") == counted_by


def test_no_model_is_called_as_they_are() -> None:
    for fields in ({"model": "/models/Outputs"}, {"models": "sam-demo,./outputs/"}):
        with pytest.raises(ValueError, match="cannot be called 'outputs'"):
            ApiSettings(**fields)  # type: ignore[arg-type]  # as the environment says it
    assert WorkerSettings(model="org/outputs").serves == "org/outputs"
    assert WorkerSettings(model="org/m", device="none").serves == OUTPUTS


def test_a_worker_with_a_model_counts_for_them_as_long_as_it_takes_jobs(worker_registry: WorkerRegistry) -> None:
    worker_registry.announce(GPU)
    worker_registry.announce(WorkerSeen("sam-gpu1@a", "m", "cuda", 1, 0))
    worker_registry.announce(WorkerSeen("sam-none@b", OUTPUTS, "none", 1, 0, outputs=True))
    taking = worker_registry.counts(("m", OUTPUTS))
    worker_registry.announce(WorkerSeen("sam-gpu0@a", "m", "cuda", 1, 0, outputs=True, fault="clock_wrong: …"))
    withdrawn = worker_registry.counts(("m", OUTPUTS))
    worker_registry.announce(GPU)
    worker_registry.withdraw(GPU.node)

    assert taking == {"m": 2, OUTPUTS: 2}
    assert withdrawn == {"m": 1, OUTPUTS: 1}
    assert worker_registry.counts(("m", OUTPUTS)) == {"m": 1, OUTPUTS: 1}
    assert sorted(worker_registry.loaded()) == ["m", OUTPUTS]


def test_they_have_a_depth_of_their_own_and_need_no_worker_of_a_model(
    ledger: Ledger, worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    worker_registry.announce(GPU)
    worker_registry.announce(WorkerSeen("sam-gpu1@a", "m", "cuda", 1, 0, outputs=True))
    for queue in ("sam.outputs.normal", "sam.outputs.normal", "sam.m.normal"):
        create(ledger, queue)
    for node in ("sam-gpu0@a", "sam-gpu1@a"):
        claim = ledger.claim_next(node_queues("m", outputs=True), node, lease_s=60, max_attempts=3)
        assert claim.record is not None

    model, outputs = Fleet(redis_client, worker_registry).loads((OUTPUTS, "m")).models

    assert (model.queued, model.running, outputs.model) == (0, 1, OUTPUTS)
    assert (outputs.queued, outputs.running) == (1, 1)
    # Each of the two runs the one's job, and is busy for the other.
    assert (model.workers, outputs.workers) == (WorkerCounts(ready=2, elsewhere=1), WorkerCounts(ready=2, elsewhere=1))
    rules = FleetRules(min_workers=3)
    assert ModelFleet.of(model, rules).desired_workers == 3
    assert ModelFleet.of(outputs, rules).min_workers == 0
    assert [ModelFleet.of(load, rules).workers.idle for load in (model, outputs)] == [0, 0]
