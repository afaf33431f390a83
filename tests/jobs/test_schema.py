"""The version of a ledger: which programs refuse which, and an older ledger that continues after its upgrade."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import redis

from maskfleet.jobs.errors import Conflict, LedgerVersion
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.deliveries import Breaker, Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Created, Deleted, NewJobs, Reply, Retried
from maskfleet.jobs.ledger.reconciler import Reconciler
from maskfleet.jobs.ledger.version import MIGRATIONS, SCHEMA, Schema, upgrade
from maskfleet.jobs.schema.delivery import DeliveryState
from maskfleet.jobs.schema.record import JobRecord, ProgressView
from maskfleet.jobs.status import Stage, Status
from tests.jobs.full_ledger import DAY_S, MANY, NODE, QUEUE, RESULT, SPEC, TENANT, dump, restore
from tests.taking import pass_delays, take_due

#: What the scripts of each earlier version wrote: python -m tests.jobs.full_ledger
EARLIER = {int(path.stem): path.read_text() for path in (Path(__file__).parent / "ledgers").glob("*.json")}
NEW = NewJobs(TENANT, QUEUE, (SPEC % "new",), DAY_S)


def create(ledger: Ledger, new: NewJobs = NEW) -> str:
    return ledger.create(new, max_in_flight=MANY, idempotency_ttl_s=DAY_S).id


def claim(ledger: Ledger) -> JobRecord | None:
    return ledger.claim_next((QUEUE,), NODE, lease_s=600, max_attempts=3).record


def test_each_earlier_version_has_its_migration_and_its_ledger() -> None:
    assert [migration.version for migration in MIGRATIONS] == list(range(1, SCHEMA + 1))
    assert sorted(EARLIER) == list(range(SCHEMA))


def test_an_empty_redis_becomes_a_ledger_of_this_version(redis_client: redis.Redis) -> None:
    Schema(redis_client).check()

    assert redis_client.get("mf:schema") == str(SCHEMA)
    assert list(upgrade(redis_client)) == []


def test_a_redis_that_is_emptied_becomes_one_with_its_first_job(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.check_version()
    redis_client.flushall()

    create(ledger)
    Schema(redis_client).check()

    assert redis_client.get("mf:schema") == str(SCHEMA)


@pytest.mark.parametrize("version", EARLIER)
def test_an_earlier_ledger_is_refused_before_anything_is_changed(
    version: int, ledger: Ledger, redis_client: redis.Redis
) -> None:
    restore(redis_client, EARLIER[version])
    before = dump(redis_client)["keys"].keys()

    for call in (
        ledger.check_version,
        lambda: create(ledger),
        lambda: claim(ledger),
        lambda: ledger.reap(max_attempts=3),
    ):
        with pytest.raises(
            LedgerVersion, match=rf"version {version}; this .* needs {SCHEMA}.*maskfleet ledger upgrade"
        ):
            call()

    assert dump(redis_client)["keys"].keys() == before


def test_a_later_ledger_is_refused_and_not_upgraded(ledger: Ledger, redis_client: redis.Redis) -> None:
    create(ledger)
    redis_client.set("mf:schema", SCHEMA + 1)

    for call in (Ledger(redis_client, DAY_S).check_version, lambda: list(upgrade(redis_client))):
        with pytest.raises(LedgerVersion, match="or a newer one"):
            call()

    assert redis_client.get("mf:schema") == str(SCHEMA + 1)


def test_a_dry_run_tells_the_steps_and_makes_none(redis_client: redis.Redis) -> None:
    restore(redis_client, EARLIER[0])
    before = set(redis_client.keys())

    steps = [step.version for step in upgrade(redis_client, dry_run=True)]

    assert steps == list(range(1, SCHEMA + 1))
    assert set(redis_client.keys()) == before


def test_an_upgrade_runs_once_at_a_time_and_once(redis_client: redis.Redis) -> None:
    restore(redis_client, EARLIER[0])
    first = upgrade(redis_client)
    next(first)

    with pytest.raises(Conflict) as refusal:
        list(upgrade(redis_client))
    rest = list(first)

    assert refusal.value.code == "upgrade_under_way"
    assert len(rest) == SCHEMA - 1
    assert list(upgrade(redis_client)) == []
    assert redis_client.exists("mf:upgrade") == 0


def test_an_upgrade_that_broke_off_goes_on_where_it_was(redis_client: redis.Redis) -> None:
    restore(redis_client, EARLIER[0])
    broken_off = upgrade(redis_client)
    done = next(broken_off)
    broken_off.close()

    rest = list(upgrade(redis_client))

    assert [done, *rest] == list(MIGRATIONS)


class Upgraded:
    """An older ledger after its upgrade, and the programs that continue with it."""

    def __init__(self, client: redis.Redis, version: int) -> None:
        restore(client, EARLIER[version])
        assert [step.version for step in upgrade(client)] == list(range(version + 1, SCHEMA + 1))
        self.client = client
        self.ledger, self.batches = Ledger(client, DAY_S), Batches(client)
        self.deliveries = Deliveries(client, Breaker(failures=0), DAY_S)
        records = self.ledger.page_of(TENANT, limit=MANY).records
        self.jobs = {record.summary.metadata["name"]: record.id for record in records}

    def record(self, name: str) -> JobRecord:
        record = self.ledger.read(self.jobs[name])
        assert record is not None
        return record

    def pass_all_waits(self) -> None:
        """Act as if every webhook's delay had passed, and the couriers' leases on those in flight had expired."""
        for pattern in ("mf:due:*", "mf:sending:*", "mf:lanes*"):
            for key in self.client.scan_iter(pattern):
                self.client.zadd(key, dict.fromkeys(self.client.zrange(key, 0, -1), 0))


@pytest.fixture(params=EARLIER)
def upgraded(redis_client: redis.Redis, request: pytest.FixtureRequest) -> Upgraded:
    return Upgraded(redis_client, request.param)


def test_after_an_upgrade_workers_end_the_jobs_that_they_hold(upgraded: Upgraded) -> None:
    ledger, progress = upgraded.ledger, ProgressView(stage=Stage.WRITING, done=4, total=4, masks=3)
    running, canceled = upgraded.record("running"), upgraded.record("to be canceled")

    replies = [ledger.beat(record, progress, lease_s=600) for record in (running, canceled)]
    ends = [ledger.succeed(running, RESULT), ledger.finish_canceled(canceled)]

    assert (running.progress, replies) == (
        ProgressView(stage=Stage.DECODING, done=1, total=4, masks=2),
        [Reply.OK, Reply.CANCELED],
    )
    assert ends == [Reply.OK, Reply.OK]
    assert [attempt.outcome for attempt in ledger.attempts(running.id)] == ["succeeded"]


def test_after_an_upgrade_all_jobs_and_batches_come_to_their_ends(upgraded: Upgraded) -> None:
    ledger, client = upgraded.ledger, upgraded.client
    assert ledger.reap(max_attempts=3).requeued == 1
    pass_delays(client)
    names = {name for name, job_id in upgraded.jobs.items() if ledger.status(job_id) is Status.QUEUED}
    silent = ledger.silent_queues()

    attempts = {}
    while record := claim(ledger):
        attempts[record.spec.metadata["name"]] = record.attempt
        assert ledger.succeed(record, RESULT) is Reply.OK
    for name, job_id in upgraded.jobs.items():
        if ledger.status(job_id) is Status.PROCESSING:
            assert ledger.succeed(upgraded.record(name), RESULT) is Reply.OK

    assert attempts == {"queued": 1, "published": 1, "lost": 2, "released": 2, "retried": 1, "open, 2": 1}
    assert set(list(attempts)[:2]) == {"lost", "released"}  # what was handed back comes first, then the oldest
    assert list(attempts)[2:] == [name for name in upgraded.jobs if name in set(list(attempts)[2:])][::-1]
    assert silent == {QUEUE: len(names)}
    assert {upgraded.record(name).status for name in names} == {Status.SUCCEEDED}
    left = ("mf:leases", "mf:deadlines", "mf:outbox", f"mf:queued:{QUEUE}", f"mf:inflight:{TENANT}")
    left += (f"mf:waiting:{QUEUE}:{TENANT}", f"mf:returned:{QUEUE}", f"mf:turns:{QUEUE}")
    assert client.exists(*left) == 0
    batch = upgraded.batches.read(str(upgraded.record("open, 0").batch_id))
    assert batch is not None
    assert (batch.total, batch.counts.succeeded, batch.ends) == (3, 3, 1)


def test_after_an_upgrade_the_webhooks_that_wait_are_delivered(upgraded: Upgraded) -> None:
    deliveries, failing = upgraded.deliveries, upgraded.jobs["failed"]
    upgraded.pass_all_waits()
    waiting, before = deliveries.waiting(), {one.id: one for one in deliveries.of(failing, TENANT)}

    due = take_due(deliveries, MANY)
    for delivery in due:
        assert deliveries.keep_body(delivery, "{}") == (delivery.body or "{}")
        deliveries.ended(delivery, DeliveryState.DELIVERED)

    assert (len(due), deliveries.waiting()) == (waiting, 0)
    assert {delivery.event for delivery in due} == {"succeeded", "failed", "completed", "ping"}
    [again] = (delivery for delivery in due if delivery.subject == failing)
    assert (again.attempts_total, again.body) == (2, before[again.id].body)
    assert len(before[again.id].tries) == 1


def test_after_an_upgrade_what_had_ended_is_seen_retried_and_deleted(upgraded: Upgraded) -> None:
    ledger = upgraded.ledger
    ends = {
        name: (upgraded.record(name).status, upgraded.record(name).error)
        for name in ("succeeded", "failed", "canceled", "expired")
    }

    retried = ledger.retry(upgraded.jobs["failed"], TENANT, start_deadline_s=DAY_S, max_in_flight=MANY)
    closed = ledger.retry(upgraded.jobs["being deleted"], TENANT, start_deadline_s=DAY_S, max_in_flight=MANY)
    deleted = ledger.delete(upgraded.jobs["being deleted"], TENANT)

    assert [str(status) for status, _ in ends.values()] == list(ends)
    assert [error.code if error else None for _, error in ends.values()] == [
        None,
        "image_corrupt",
        None,
        "start_deadline_passed",
    ]
    assert upgraded.record("succeeded").result == RESULT
    assert (retried, closed, deleted) == (Retried.QUEUED, Retried.NOT_FAILED, Deleted.DELETED)


def test_after_an_upgrade_keys_stand_for_what_they_stood_for(upgraded: Upgraded) -> None:
    same = NewJobs(TENANT, QUEUE, (SPEC % "published",), DAY_S, None, "order-42", "digest")

    creation = upgraded.ledger.create(same, max_in_flight=MANY, idempotency_ttl_s=DAY_S)

    assert (creation.outcome, creation.id) == (Created.KNOWN, upgraded.jobs["published"])
    assert [key.tenant for key in KeyStore(upgraded.client).listed()] == [TENANT]


def test_after_an_upgrade_a_key_that_creates_jobs_creates_interactive_ones_as_before(redis_client: redis.Redis) -> None:
    restore(redis_client, EARLIER[1])
    keys = KeyStore(redis_client)
    keys.create(TENANT, [Scope.READ, Scope.WRITE])

    list(upgrade(redis_client))

    # Created within one second, they are listed in any order.
    scopes = sorted((key.scopes for key in keys.listed()), key=len)
    assert scopes == [{Scope.READ}, {Scope.READ, Scope.WRITE, Scope.INTERACTIVE}]


def test_waiting_jobs_are_carried_over_once_however_often_the_upgrade_runs(redis_client: redis.Redis) -> None:
    restore(redis_client, EARLIER[1])
    outbox = redis_client.zrange("mf:outbox", 0, -1, withscores=True)
    list(upgrade(redis_client))
    once = dump(redis_client)["keys"]
    redis_client.set("mf:schema", 1)
    redis_client.zadd("mf:outbox", dict(outbox[2:]))  # as if it had been cut off

    list(upgrade(redis_client))

    assert {key: kept["value"] for key, kept in dump(redis_client)["keys"].items()} == {
        key: kept["value"] for key, kept in once.items()
    }


def test_after_an_upgrade_what_is_derived_matches_the_records_and_its_tenants_are_known(upgraded: Upgraded) -> None:
    client = upgraded.client

    mended = sum(Reconciler(client, DAY_S).steps(), Counter())

    assert mended == {}
    assert client.zrange("mf:tenants", 0, -1) == [TENANT]
    assert client.zrange("mf:batches", 0, -1) == [upgraded.record("open, 0").batch_id]
    shown = upgraded.record("failed")
    assert (shown.summary.mode, shown.summary.metadata) == ("everything", {"name": "failed"})
