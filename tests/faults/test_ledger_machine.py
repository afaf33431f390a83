"""The ledger's scripts, called in any order on a real Redis and compared with a simple model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pytest
import redis
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Cancel, Created, Deleted, NewJobs, NodeCall, Reply, Retried
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.record import JobRecord, Metrics, ProgressView, ResultSummary
from maskfleet.jobs.schema.spec import Webhook
from maskfleet.jobs.status import Stage
from tests.taking import take_due

TENANT, OTHER, QUEUE = "ant", "bee", "sam.m.normal"
NODE, IMAGE = "node", "upl_00000000000000000000000000000000"
SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
ENDED = {"succeeded", "failed", "canceled", "expired"}
MAX_ATTEMPTS, MAX_IN_FLIGHT = 2, 3
#: Few, so that much happens to each.
MAX_JOBS = 4
RESULT = ResultSummary(prefix="p/", manifest_key="p/m", masks=0, best_score=None, metrics=Metrics())
LONG_S = 600.0


@dataclass
class Modelled:
    """What a job should be."""

    hooked: bool
    key: str
    tenant: str
    created_ms: int
    status: str = "queued"
    attempt: int = 0
    fence: int = 0
    token: str = ""
    cancel: bool = False
    deleting: bool = False
    returned: bool = False
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """What a worker holds, or believes it holds."""

    job: str
    record: JobRecord


class LedgerMachine(RuleBasedStateMachine):
    """Callers, workers that may be late or dead, and couriers, all using one ledger."""

    client: ClassVar[redis.Redis]
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.ledger = Ledger(self.client, retention_s=3600)
        self.deliveries = Deliveries(self.client)
        self.jobs: dict[str, Modelled] = {}
        self.keys: dict[str, tuple[str, str]] = {}
        self.gone: list[str] = []
        self.fenced = 0
        self.delivered: dict[str, list[str]] = {}
        #: Tenants whose image the node has, the job that it claimed last, and whether it was called a moment ago.
        self.held: set[str] = set()
        self.latest = ""
        self.called = False

    # Callers.

    @precondition(lambda self: len(self.jobs) < MAX_JOBS)
    @rule(
        key=st.sampled_from(["", "", "k1", "k2"]),
        body=st.sampled_from(["b1", "b2"]),
        hooked=st.booleans(),
        other=st.booleans(),
    )
    def create(self, key: str, body: str, hooked: bool, other: bool) -> None:
        webhook = Webhook(url="https://example.com/hook") if hooked else None
        tenant = OTHER if other and not key else TENANT
        job = NewJobs(tenant, QUEUE, (SPEC,), 600, webhook, key, body if key else "", images=(IMAGE,))
        WorkerRegistry(self.client).announce(WorkerSeen(NODE, "m", "cpu", 12, 3))
        call = NodeCall("m", int(LONG_S * 1000))
        idle = self.latest not in self.jobs or self.jobs[self.latest].status != "processing"
        expected = NODE if tenant in self.held and idle and not self.called else ""

        creation = self.ledger.create(job, max_in_flight=MAX_IN_FLIGHT, idempotency_ttl_s=3600, call=call)

        if key in self.keys:
            known, its_body = self.keys[key]
            assert creation.id == known
            assert creation.outcome is (Created.KNOWN if body == its_body else Created.KEY_REUSED)
        elif len(self.in_flight(tenant)) >= MAX_IN_FLIGHT:
            assert creation.outcome is Created.OVER_QUOTA
        else:
            assert creation.outcome is Created.CREATED
            assert creation.id not in self.jobs
            assert creation.node == expected
            self.called = self.called or bool(creation.node)
            record = self.ledger.read(creation.id)
            assert record is not None
            self.jobs[creation.id] = Modelled(hooked, key, tenant, record.created_ms)
            if key:
                self.keys[key] = (creation.id, body)

    @rule()
    def a_moment_passes_after_a_call(self) -> None:
        self.client.delete(f"mf:called:{NODE}")
        self.called = False

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job, known = self.any_job(data, "processing")

        reply = self.ledger.cancel(job, self.tenant_of(job))

        if known is None:
            assert reply is Cancel.UNKNOWN
        elif known.status in ENDED:
            assert reply is Cancel.ENDED
        elif known.status == "queued":
            assert reply is Cancel.CANCELED
            self.end(job, "canceled")
        else:
            assert reply is Cancel.REQUESTED
            known.cancel = True

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job, known = self.any_job(data, "failed")

        reply = self.ledger.retry(job, self.tenant_of(job), start_deadline_s=600, max_in_flight=MAX_IN_FLIGHT)

        if known is None:
            assert reply is Retried.UNKNOWN
        elif known.status != "failed" or known.deleting:
            assert reply is Retried.NOT_FAILED
        elif len(self.in_flight(known.tenant)) >= MAX_IN_FLIGHT:
            assert reply is Retried.OVER_QUOTA
        else:
            assert reply is Retried.QUEUED
            known.status, known.attempt, known.cancel, known.returned = "queued", 0, False, False
            known.fence += 1

    @rule(data=st.data(), whole=st.booleans())
    def delete(self, data: st.DataObject, whole: bool) -> None:
        job, known = self.any_job(data, "failed")

        reply = self.ledger.begin_deletion(job, self.tenant_of(job))
        if reply is Deleted.BEGUN and whole:
            reply = self.ledger.delete(job, self.tenant_of(job))

        if known is None:
            assert reply is Deleted.UNKNOWN
        elif known.status not in ENDED:
            assert reply is Deleted.NOT_ENDED
        else:
            known.deleting = True
            if whole:
                assert reply is Deleted.DELETED
                del self.jobs[job]
                self.gone.append(job)

    @rule(data=st.data())
    def another_tenant_changes_nothing(self, data: st.DataObject) -> None:
        job, _ = self.any_job(data)

        stranger = TENANT if self.tenant_of(job) == OTHER else OTHER
        assert self.ledger.cancel(job, stranger) is Cancel.UNKNOWN
        assert self.ledger.retry(job, stranger, start_deadline_s=1, max_in_flight=9) is Retried.UNKNOWN
        assert self.ledger.delete(job, stranger) is Deleted.UNKNOWN

    # Workers.

    @rule(target=claims)
    def claim(self) -> Any:
        record = self.claim_next()
        return multiple() if record is None else Claim(record.id, record)

    @rule(target=claims, claim=claims)
    def a_job_is_reaped_and_claimed_again_and_then_its_first_worker_beats(self, claim: Claim) -> Any:
        if not self.holds(claim) or self.jobs[claim.job].cancel or self.jobs[claim.job].attempt >= MAX_ATTEMPTS:
            return multiple()
        self.reap(claim.job)
        record = self.claim_next()
        while record is not None and record.id != claim.job:  # others that were handed back before
            record = self.claim_next()
        assert record is not None

        self.assert_fenced(self.ledger.beat(claim.record, ProgressView(stage=Stage.DECODING, done=1), lease_s=LONG_S))
        self.assert_fenced(self.ledger.fail(claim.record, "internal_error", "It broke."))
        self.assert_fenced(self.ledger.release(claim.record, delay_s=0, charged=True))
        assert self.ledger.beat(record, ProgressView(stage=Stage.DECODING, done=2), lease_s=LONG_S) is Reply.OK
        return Claim(record.id, record)

    def may_be_next(self) -> set[str]:
        """Return the jobs that were handed back, or else each tenant's oldest ones."""
        waiting = {job: known for job, known in self.jobs.items() if known.status == "queued"}
        returned = {job for job, known in waiting.items() if known.returned}
        oldest = {
            tenant: min(known.created_ms for known in waiting.values() if known.tenant == tenant)
            for tenant in {known.tenant for known in waiting.values()}
        }
        return returned or {job for job, known in waiting.items() if known.created_ms == oldest[known.tenant]}

    def claim_next(self) -> JobRecord | None:
        """Claim the next job, and check that it is one that may be next."""
        claim = self.ledger.claim_next((QUEUE,), NODE, lease_s=LONG_S, max_attempts=MAX_ATTEMPTS)

        record = claim.record
        while candidates := self.may_be_next():
            if record is not None and record.id in candidates:
                break
            # Those without an attempt left were ended on the way.
            ended = {job for job in candidates if self.jobs[job].attempt >= MAX_ATTEMPTS}
            ended = {job for job in ended if self.ledger.status(job) == "failed"}
            assert ended
            for job in ended:
                self.end(job, "failed")
        if record is None:
            return None
        known = self.jobs[record.id]
        assert known.status == "queued"
        known.status, known.returned, known.token = "processing", False, record.token
        self.latest = record.id
        known.attempt += 1
        known.fence += 1
        assert (record.attempt, record.fence) == (known.attempt, known.fence)
        waiting = sum(one.status == "queued" for one in self.jobs.values())
        assert (claim.more_in, claim.more) == ((QUEUE, waiting) if waiting else ("", 0))
        return record

    @rule(claim=claims, done=st.integers(0, 9))
    def beat(self, claim: Claim, done: int) -> None:
        reply = self.ledger.beat(claim.record, ProgressView(stage=Stage.DECODING, done=done), lease_s=LONG_S)

        if self.holds(claim):
            assert reply is (Reply.CANCELED if self.jobs[claim.job].cancel else Reply.OK)
        else:
            self.assert_fenced(reply)

    @rule(claim=claims, status=st.sampled_from(["succeeded", "failed", "canceled"]))
    def finish(self, claim: Claim, status: str) -> None:
        known = self.jobs.get(claim.job)
        again = known is not None and (known.status, known.token, known.fence) == (
            status,
            claim.record.token,
            claim.record.fence,
        )

        if status == "succeeded":
            reply = self.ledger.succeed(claim.record, RESULT, image_held_s=LONG_S)
        elif status == "failed":
            reply = self.ledger.fail(claim.record, "internal_error", "It broke.")
        else:
            reply = self.ledger.finish_canceled(claim.record)

        if again:
            assert reply is Reply.OK
        elif self.holds(claim):
            assert reply is Reply.OK
            self.end(claim.job, status)
            if status == "succeeded":
                self.held.add(self.jobs[claim.job].tenant)
        else:
            self.assert_fenced(reply)

    @rule(claim=consumes(claims), charged=st.booleans())
    def release(self, claim: Claim, charged: bool) -> None:
        reply = self.ledger.release(claim.record, delay_s=0, charged=charged)

        if self.holds(claim):
            known = self.jobs[claim.job]
            known.attempt -= not charged
            if known.cancel:
                assert reply is Reply.CANCELED
                self.end(claim.job, "canceled")
                return
            assert reply is Reply.OK
            known.status, known.returned = "queued", True
            known.fence += 1
        else:
            self.assert_fenced(reply)

    # Couriers and time.

    @rule(data=st.data())
    def a_lease_runs_out(self, data: st.DataObject) -> None:
        running = [job for job, known in self.jobs.items() if known.status == "processing"]
        if not running:
            return
        self.reap(one_of(data, running))

    def reap(self, job: str) -> None:
        self.client.zadd("mf:leases", {job: 0}, xx=True)

        reaped = self.ledger.reap(max_attempts=MAX_ATTEMPTS)

        known = self.jobs[job]
        if known.cancel:
            assert (reaped.canceled, reaped.failed, reaped.requeued) == (1, 0, 0)
            self.end(job, "canceled")
        elif known.attempt >= MAX_ATTEMPTS:
            assert (reaped.canceled, reaped.failed, reaped.requeued) == (0, 1, 0)
            self.end(job, "failed")
        else:
            assert (reaped.canceled, reaped.failed, reaped.requeued) == (0, 0, 1)
            known.status, known.returned = "queued", True
            known.fence += 1

    @rule(data=st.data(), by_claim=st.booleans())
    def a_start_deadline_passes(self, data: st.DataObject, by_claim: bool) -> None:
        deadlines = self.members("mf:deadlines")
        waiting = [job for job in self.jobs if job in deadlines]
        if not waiting:
            return
        job = one_of(data, waiting)
        if by_claim and any(known.returned for known in self.jobs.values() if known.status == "queued"):
            return  # its turn would not come
        self.client.zadd("mf:deadlines", {job: 0}, xx=True)
        self.client.hset(f"mf:job:{job}", "start_by_ms", 0)

        if by_claim:
            # As if it were the oldest job of the tenant whose turn it is.
            tenant = self.jobs[job].tenant
            self.client.zadd(f"mf:waiting:{QUEUE}:{tenant}", {job: 0}, xx=True)
            self.client.zadd(f"mf:turns:{QUEUE}", {tenant: -1}, xx=True)
            self.end(job, "expired")
            self.claim_next()
        else:
            assert self.ledger.reap(max_attempts=MAX_ATTEMPTS).expired == 1
            self.end(job, "expired")

    @rule()
    def the_courier_rings_where_jobs_wait(self) -> None:
        waiting = sum(known.status == "queued" for known in self.jobs.values())

        assert self.ledger.silent_queues() == ({QUEUE: waiting} if waiting else {})

    @rule()
    def webhooks_are_delivered(self) -> None:
        for delivery in take_due(self.deliveries, 100):
            self.delivered.setdefault(delivery.subject, []).append(delivery.id)
            self.deliveries.ended(delivery, "delivered")
        for job, known in self.jobs.items():
            if known.hooked:
                ids = self.delivered.get(job, [])
                assert len(ids) == len(set(ids)) == len(known.told)
                assert [delivery.rpartition("_")[2] for delivery in ids] == known.told

    # Invariants.

    @invariant()
    def the_records_are_as_modelled(self) -> None:
        for job, known in self.jobs.items():
            record = self.ledger.read(job)
            assert record is not None
            assert (record.status, record.attempt, record.fence) == (known.status, known.attempt, known.fence)
            attempts = self.ledger.attempts(job)
            assert all(attempt.outcome is not None for attempt in attempts[:-1])
            if attempts:
                assert (attempts[-1].outcome is None) == (known.status == "processing")
        for job in self.gone:
            assert self.ledger.read(job) is None

    @invariant()
    def each_job_is_in_the_lists_of_its_state_and_in_no_other(self) -> None:
        queued = {job for job, known in self.jobs.items() if known.status == "queued"}
        running = {job for job, known in self.jobs.items() if known.status == "processing"}
        returned = {job for job in queued if self.jobs[job].returned}
        assert self.members(f"mf:queued:{QUEUE}") == queued
        assert self.members(f"mf:returned:{QUEUE}") == returned
        for tenant in (TENANT, OTHER):
            in_turn = {job for job in queued - returned if self.jobs[job].tenant == tenant}
            assert self.members(f"mf:waiting:{QUEUE}:{tenant}") == in_turn
            assert not in_turn or self.client.zscore(f"mf:turns:{QUEUE}", tenant) is not None
        assert self.members("mf:leases") == running
        assert self.members("mf:deadlines") <= queued
        for tenant in (TENANT, OTHER):
            own = {job for job, known in self.jobs.items() if known.tenant == tenant}
            assert self.members(f"mf:jobs:{tenant}") == own
            assert cast("set[str]", self.client.smembers(f"mf:inflight:{tenant}")) == (queued | running) & own

    @invariant()
    def what_has_ended_expires_and_nothing_else_does(self) -> None:
        for job, known in self.jobs.items():
            expires = self.client.pttl(f"mf:job:{job}") > 0
            assert expires == (known.status in ENDED)
        for pattern in ("mf:delivery:*", "mf:idempotency:*"):
            assert all(self.client.pttl(key) > 0 for key in self.client.scan_iter(pattern))

    @invariant()
    def who_was_fenced_is_counted(self) -> None:
        assert JobCounts(self.client).totals().get("fenced", 0) == self.fenced

    def any_job(self, data: st.DataObject, status: str = "") -> tuple[str, Modelled | None]:
        """Choose a job, usually one in this state; now and then one that never existed or is gone."""
        fitting = [job for job, known in self.jobs.items() if known.status == status]
        if fitting and data.draw(st.integers(0, 3)):
            job = one_of(data, fitting)
        else:
            job = one_of(data, ["job_unknown", *self.gone, *self.jobs])
        return job, self.jobs.get(job)

    def in_flight(self, tenant: str) -> list[str]:
        return [job for job, known in self.jobs.items() if known.status not in ENDED and known.tenant == tenant]

    def tenant_of(self, job: str) -> str:
        return self.jobs[job].tenant if job in self.jobs else TENANT

    def holds(self, claim: Claim) -> bool:
        known = self.jobs.get(claim.job)
        return known is not None and known.status == "processing" and known.token == claim.record.token

    def end(self, job: str, status: str) -> None:
        known = self.jobs[job]
        known.status = status
        if known.hooked and status in ("succeeded", "failed", "canceled", "expired"):
            known.told.append(status)

    def assert_fenced(self, reply: Reply) -> None:
        assert reply is Reply.FENCED
        self.fenced += 1

    def members(self, key: str) -> set[str]:
        return set(cast("list[str]", self.client.zrange(key, 0, -1)))


def one_of(data: st.DataObject, jobs: list[str]) -> str:
    """Choose by position: ids differ from run to run, and Hypothesis repeats its runs."""
    return jobs[data.draw(st.integers(0, len(jobs) - 1))]


@pytest.fixture
def machine(redis_client: redis.Redis) -> Iterator[type[LedgerMachine]]:
    LedgerMachine.client = redis_client
    yield LedgerMachine
    del LedgerMachine.client


def test_the_scripts_keep_their_promises_in_any_order(machine: type[LedgerMachine]) -> None:
    examples = settings(max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))

    run_state_machine_as_test(machine, settings=examples)
