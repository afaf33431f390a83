"""The reconciler: what does not match the records is mended, what does is left alone, and each step is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import redis

from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Created, NewBatch, NewJobs
from maskfleet.jobs.ledger.reconciler import STEP, Mended, Reconciler
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.messages import Publisher
from maskfleet.jobs.queue import canary_queue
from maskfleet.jobs.schema.spec import Webhook
from maskfleet.jobs.settings import SharedSettings
from tests.jobs.commands import counted_commands
from tests.jobs.full_ledger import QUEUE, SPEC, FullLedger
from tests.taking import claim

TENANT = "ant"
GONE = "job_" + "0" * 32
RETENTION_S = 3600


@pytest.fixture
def reconciler(redis_client: redis.Redis) -> Reconciler:
    return Reconciler(redis_client, RETENTION_S)


def reconcile(reconciler: Reconciler) -> Mended:
    return sum(reconciler.steps(), Counter())


class Jobs:
    """A tenant's jobs, one in each state that has places in sets, and a batch."""

    def __init__(self, client: redis.Redis, ledger: Ledger) -> None:
        self.client, self.ledger = client, ledger
        webhook = Webhook(url="https://example.com/hook")
        self.succeeded = self.create(webhook=webhook)
        claimed = claim(ledger, self.succeeded, lease_s=600)
        assert claimed is not None
        ledger.finish_canceled(claimed)
        self.running, self.queued = self.create(), self.create()
        assert claim(ledger, self.running, lease_s=600)
        self.batch = ledger.create(
            NewJobs(TENANT, QUEUE, (SPEC % "0", SPEC % "1"), 600, batch=NewBatch()),
            max_in_flight=100,
            idempotency_ttl_s=60,
        )

    def create(self, webhook: Webhook | None = None) -> str:
        job = NewJobs(TENANT, QUEUE, (SPEC % "one",), 600, webhook)
        return self.ledger.create(job, max_in_flight=100, idempotency_ttl_s=60).id

    def all_sets(self) -> dict[str, object]:
        """Return what may be mended, apart from times."""
        client = self.client
        names = (
            "mf:jobs:ant",
            f"mf:queued:{QUEUE}",
            f"mf:waiting:{QUEUE}:ant",
            f"mf:returned:{QUEUE}",
            "mf:leases",
            "mf:deadlines",
            "mf:deliveries",
            "mf:batches",
        )
        sets: dict[str, object] = {name: sorted(client.zrange(name, 0, -1)) for name in names}
        sets["turns"] = client.zrange(f"mf:turns:{QUEUE}", 0, -1)
        sets["in flight"] = sorted(client.smembers("mf:inflight:ant"))
        sets["live"] = client.hget("mf:bytes:ant", "live")
        sets["due"] = sorted(client.zrange("mf:due:ant:example.com", 0, -1))
        counts = Batches(client).read(self.batch.id)
        sets["batch"] = counts.counts if counts else None
        return sets


@pytest.fixture
def jobs(redis_client: redis.Redis, ledger: Ledger) -> Jobs:
    return Jobs(redis_client, ledger)


def test_of_a_ledger_with_something_of_everything_nothing_is_mended(
    reconciler: Reconciler, redis_client: redis.Redis
) -> None:
    FullLedger(redis_client).fill()

    assert reconcile(reconciler) == {}


BREAKS: dict[str, tuple[Callable[[Jobs], object], Mended]] = {
    "a record that is gone is in flight": (
        lambda jobs: jobs.client.sadd("mf:inflight:ant", GONE),
        Counter(in_flight=1),
    ),
    "a job that has ended is in flight": (
        lambda jobs: jobs.client.sadd("mf:inflight:ant", jobs.succeeded),
        Counter(in_flight=1),
    ),
    "a job is not in flight": (
        lambda jobs: jobs.client.srem("mf:inflight:ant", jobs.queued),
        Counter(in_flight=1),
    ),
    "a record that is gone waits": (
        lambda jobs: jobs.client.zadd(f"mf:queued:{QUEUE}", {GONE: 1}),
        Counter(queued=1),
    ),
    "a running job waits": (
        lambda jobs: jobs.client.zadd(f"mf:queued:{QUEUE}", {jobs.running: 1}),
        Counter(queued=1),
    ),
    "a queued job does not wait": (
        lambda jobs: jobs.client.zrem(f"mf:queued:{QUEUE}", jobs.queued),
        Counter(queued=1),
    ),
    "a queued job does not wait in its tenant's turns": (
        lambda jobs: jobs.client.zrem(f"mf:waiting:{QUEUE}:ant", jobs.queued),
        Counter(queued=1),
    ),
    "a tenant whose jobs wait takes no turns": (
        lambda jobs: jobs.client.delete(f"mf:turns:{QUEUE}"),
        Counter(queued=1),
    ),
    "a running job waits in its tenant's turns": (
        lambda jobs: jobs.client.zadd(f"mf:waiting:{QUEUE}:ant", {jobs.running: 1}),
        Counter(queued=1),
    ),
    "a record that is gone was handed back": (
        lambda jobs: jobs.client.zadd(f"mf:returned:{QUEUE}", {GONE: 1}),
        Counter(queued=1),
    ),
    "a queued job has no deadline": (lambda jobs: jobs.client.zrem("mf:deadlines", jobs.queued), Counter(deadlines=1)),
    "a running job has a deadline": (
        lambda jobs: jobs.client.zadd("mf:deadlines", {jobs.running: 9e12}),
        Counter(deadlines=1),
    ),
    "a running job has no lease": (lambda jobs: jobs.client.zrem("mf:leases", jobs.running), Counter(leases=1)),
    "a queued job has a lease": (lambda jobs: jobs.client.zadd("mf:leases", {jobs.queued: 9e12}), Counter(leases=1)),
    "bytes are counted that nothing holds": (
        lambda jobs: jobs.client.hincrby("mf:bytes:ant", "live", 1_000_000),
        Counter(bytes=1),
    ),
    "bytes are not counted": (lambda jobs: jobs.client.hdel("mf:bytes:ant", "live"), Counter(bytes=1)),
    "a batch counts a job that is not there": (
        lambda jobs: jobs.client.hincrby(f"mf:batch:{jobs.batch.id}", "processing", 1),
        Counter(batches=1),
    ),
    "a batch is unknown to be open": (
        lambda jobs: jobs.client.zadd("mf:batches", {"batch_" + "0" * 32: 1}),
        Counter(batches=1),
    ),
    "a webhook does not wait": (
        lambda jobs: jobs.client.zrem("mf:deliveries", f"msg_{jobs.succeeded}_1_canceled"),
        Counter(waiting=1),
    ),
    "a webhook waits in no host's queue": (
        lambda jobs: jobs.client.delete("mf:due:ant:example.com"),
        Counter(waiting=1),
    ),
    "a webhook that is gone waits": (
        lambda jobs: jobs.client.zadd("mf:deliveries", {"msg_0": 1}),
        Counter(waiting=1),
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_does_not_match_the_records_is_mended_and_counted(
    reconciler: Reconciler, jobs: Jobs, redis_client: redis.Redis, name: str
) -> None:
    damage, expected = BREAKS[name]
    before = jobs.all_sets()
    damage(jobs)
    assert jobs.all_sets() != before

    mended = reconcile(reconciler)

    assert mended == expected
    assert jobs.all_sets() == before
    [what] = expected
    assert redis_client.hget("mf:totals", f"mended_{what}") == "1"
    assert reconcile(reconciler) == {}


def test_a_full_quota_of_jobs_that_are_gone_is_given_back(
    reconciler: Reconciler, ledger: Ledger, redis_client: redis.Redis
) -> None:
    new = NewJobs(TENANT, QUEUE, (SPEC % "one",), 600)
    for _ in range(5):
        redis_client.delete(f"mf:job:{ledger.create(new, max_in_flight=5, idempotency_ttl_s=60).id}")
    refused = ledger.create(new, max_in_flight=5, idempotency_ttl_s=60)

    reconcile(reconciler)

    assert refused.outcome is Created.OVER_QUOTA
    assert ledger.create(new, max_in_flight=5, idempotency_ttl_s=60).outcome is Created.CREATED


def test_a_batch_whose_jobs_have_all_ended_is_completed(
    reconciler: Reconciler, jobs: Jobs, redis_client: redis.Redis
) -> None:
    first, second = jobs.batch.job_ids
    jobs.ledger.cancel(first, TENANT)
    jobs.ledger.begin_deletion(first, TENANT)
    jobs.ledger.delete(first, TENANT)
    jobs.ledger.cancel(second, TENANT)
    key = f"mf:batch:{jobs.batch.id}"
    redis_client.hdel(key, "ended_ms")
    redis_client.hset(key, mapping={"queued": 1, "canceled": 1, "ends": 0})
    redis_client.zadd("mf:batches", {jobs.batch.id: 1})

    assert reconcile(reconciler) == {"batches": 1}

    record = Batches(redis_client).read(jobs.batch.id)
    assert record is not None
    # Of the deleted one, only that it had ended is known.
    assert (record.counts.canceled, record.counts.expired, record.done, record.ends) == (1, 1, 2, 1)
    assert redis_client.zcard("mf:batches") == 0
    assert redis_client.ttl(key) > 0


def test_of_a_tenant_that_left_nothing_stays_for_ever(
    reconciler: Reconciler, jobs: Jobs, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    for record in jobs.ledger.page_of(TENANT, limit=100).records:
        jobs.ledger.cancel(record.id, TENANT)
    jobs.ledger.reap(max_attempts=3)
    running = jobs.ledger.read(jobs.running)
    assert running is not None
    jobs.ledger.finish_canceled(running)

    reconcile(reconciler)
    expiring = [redis_client.ttl(key) > RETENTION_S for key in ("mf:jobs:ant", "mf:bytes:ant")]
    jobs.create()
    reconcile(reconciler)
    kept = [redis_client.ttl(key) for key in ("mf:jobs:ant", "mf:bytes:ant")]
    for key in redis_client.keys("mf:*ant*"):  # as if all had expired
        redis_client.delete(key)
    reconcile(reconciler)

    assert expiring == [True, True]
    assert kept == [-1, -1]
    assert redis_client.exists("mf:tenants") == 0


def test_expired_records_leave_the_lists_that_nobody_reads(
    reconciler: Reconciler, jobs: Jobs, redis_client: redis.Redis
) -> None:
    before = redis_client.zrange("mf:jobs:ant", 0, -1)
    told = redis_client.zrange("mf:deliveries:ant", 0, -1)
    redis_client.zadd("mf:jobs:ant", {f"job_{number:032x}": number for number in range(3000)})
    redis_client.zadd("mf:deliveries:ant", {f"msg_{number}": number for number in range(3000)})

    assert reconcile(reconciler) == {}

    assert redis_client.zrange("mf:jobs:ant", 0, -1) == before
    assert redis_client.zrange("mf:deliveries:ant", 0, -1) == told


def test_no_step_costs_more_than_some_hundred_entries_do(
    reconciler: Reconciler, ledger: Ledger, redis_client: redis.Redis
) -> None:
    new = NewJobs(TENANT, QUEUE, (SPEC % "one",) * 1000, 600, Webhook(url="https://example.com/hook"))
    for _ in range(3):
        ledger.create(new, max_in_flight=10_000, idempotency_ttl_s=60)
    for record in ledger.page_of(TENANT, limit=1000).records:
        ledger.cancel(record.id, TENANT)
    for number in range(300):
        ledger.create(NewJobs(f"tenant-{number}", QUEUE, (SPEC % "one",), 600), max_in_flight=9, idempotency_ttl_s=60)

    steps, costs = reconciler.steps(), []
    while True:
        with counted_commands(redis_client) as commands:
            mended = next(steps, None)
        if mended is None:
            break
        assert mended == {}
        costs.append(sum(commands.values()))

    # A step of SSCAN or ZSCAN may return twice what it was asked for.
    assert max(costs) <= 2 * STEP * 4 + 20
    assert len(costs) > 300


def test_a_node_that_is_gone_leaves_nothing(
    reconciler: Reconciler, worker_registry: WorkerRegistry, redis_client: redis.Redis, redis_url: str
) -> None:
    publisher = Publisher(SharedSettings(redis_url=redis_url))
    for node in ("sam-cpu@gone", "sam-cpu@here"):
        worker_registry.announce(WorkerSeen(node, "m", "cpu", 12, 3))
        publisher.publish(GONE, canary_queue(node))
    redis_client.zincrby("mf:workers", -3601, "sam-cpu@gone")

    assert reconcile(reconciler) == {}

    assert [key for key in redis_client.keys("*") if "gone" in key and key.startswith(("_kombu", "sam."))] == []
    assert redis_client.zrange("mf:workers", 0, -1) == ["sam-cpu@here"]
    assert len([key for key in redis_client.keys("*") if key.endswith("sam.canary.sam-cpu@here")]) == 3


def test_it_is_the_turn_of_one_courier(reconciler: Reconciler) -> None:
    assert [reconciler.is_due(60), reconciler.is_due(60)] == [True, False]
