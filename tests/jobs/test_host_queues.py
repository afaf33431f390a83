"""The webhooks' host queues, used in any order on a real Redis: every waiting webhook is found, in one place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import ClassVar, cast

import pytest
import redis
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from maskfleet.jobs.ledger.deliveries import Breaker, Deliveries, Delivery, Redelivered, Shares
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.delivery import DeliveryAttempt, DeliveryAttemptOutcome, DeliveryState
from maskfleet.jobs.schema.spec import Webhook

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
TENANTS, HOSTS = ("ant", "bee"), ("a.example.com", "b.example.com:8443")
PER_HOST, SENDERS = 2, 16
#: Halfway between the time steps below, with 50 s to spare: no lease runs out because the machine is slow.
LEASE_S = 650.0
ANSWERS = {200: DeliveryState.DELIVERED, 410: DeliveryState.REFUSED, 404: None, 500: None, None: None}


class HostQueuesMachine(RuleBasedStateMachine):
    """Jobs that end, two couriers that may die, receivers that fail, and owners who redeliver."""

    client: ClassVar[redis.Redis]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.ledger = Ledger(self.client, retention_s=3600)
        self.deliveries = Deliveries(self.client, Breaker(failures=2, first_s=20))
        self.states: dict[str, DeliveryState] = {}
        self.owners: dict[str, str] = {}
        self.taken: list[Delivery] = []
        self.late: list[Delivery] = []

    @rule(tenant=st.sampled_from(TENANTS), host=st.sampled_from(HOSTS), path=st.sampled_from("12"))
    def a_job_ends(self, tenant: str, host: str, path: str) -> None:
        job = NewJobs(tenant, "sam.m.normal", (SPEC,), 600, Webhook(url=f"https://{host}/{path}"))
        job_id = self.ledger.create(job, max_in_flight=9, idempotency_ttl_s=60).id
        self.ledger.cancel(job_id, tenant)
        [told] = self.deliveries.of(job_id, tenant)
        self.states[told.id], self.owners[told.id] = DeliveryState.WAITING, tenant

    @rule()
    def a_courier_takes_what_is_due(self) -> None:
        sending = {tenant: sum(one.tenant == tenant for one in self.taken) for tenant in TENANTS}
        free = SENDERS - len(self.taken)

        due = self.deliveries.due(free, lease_s=LEASE_S, shares=Shares(PER_HOST, SENDERS, sending))

        assert len(due) <= free
        assert not {one.id for one in due} & {one.id for one in self.taken}
        self.taken += due
        for tenant in TENANTS:
            assert sum(one.tenant == tenant for one in self.taken) <= SENDERS // 2
        for host_queue in {(one.tenant, host_of(one)) for one in due}:
            assert self.client.zcard(f"mf:sending:{host_queue[0]}:{host_queue[1]}") <= PER_HOST
        self._see_disabled()

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), status=st.sampled_from(list(ANSWERS)), delay_s=st.sampled_from([0.0, 500.0, 5000.0]))
    def an_attempt_is_over(self, data: st.DataObject, status: int | None, delay_s: float) -> None:
        delivery = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        attempt, state = tried(delivery, status), ANSWERS[status]

        if state is None:
            self.deliveries.postponed(delivery, delay_s, attempt)
        else:
            self.deliveries.ended(delivery, state, attempt)
            self.states[delivery.id] = state

    @precondition(lambda self: self.taken)
    @rule()
    def a_courier_dies_and_its_leases_run_out(self) -> None:
        self.time_passes(700.0)

    @precondition(lambda self: self.late)
    @rule(data=st.data(), arrived=st.booleans())
    def a_dead_courier_reports_after_all(self, data: st.DataObject, arrived: bool) -> None:
        delivery = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        record = self.deliveries.read(delivery.id, delivery.tenant)
        assert record is not None
        again = any(one.id == delivery.id for one in self.taken)

        if arrived:
            self.deliveries.ended(delivery, DeliveryState.DELIVERED, tried(delivery, 200))
            self.states[delivery.id] = DeliveryState.DELIVERED
            self.taken = [one for one in self.taken if one.id != delivery.id]
        else:
            self.deliveries.postponed(delivery, 5, tried(delivery, 500))
            now = self.deliveries.read(delivery.id, delivery.tenant)
            assert now is not None
            assert now.state is record.state
            assert again == any(one.id == delivery.id for one in self.taken)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def its_owner_sends_one_again(self, data: st.DataObject) -> None:
        delivery_id = data.draw(st.integers(0, len(self.states) - 1).map(list(self.states).__getitem__))

        reply = self.deliveries.redeliver(delivery_id, self.owners[delivery_id])

        leased = delivery_id in {one for key in self.keys("mf:sending:*") for one in self.members(key)}
        assert reply is (Redelivered.WAITING if leased else Redelivered.QUEUED)
        if reply is Redelivered.QUEUED:
            self.states[delivery_id] = DeliveryState.WAITING
            self.late = [one for one in self.late if one.id != delivery_id]

    @rule(seconds=st.sampled_from([100.0, 300.0, 7000.0]))
    def time_passes(self, seconds: float) -> None:
        """Move everything scheduled closer instead of waiting for it."""
        for pattern in ("mf:due:*", "mf:sending:*", "mf:lanes*", "mf:deliveries"):
            for key in self.keys(pattern):
                scores = self.members(key)
                self.client.zadd(key, {name: score - seconds * 1000 for name, score in scores.items()})
        for key in (*self.keys("mf:breaker:*"), *self.keys("mf:receivers:*")):
            if self.client.hexists(key, "until_ms"):
                self.client.hincrby(key, "until_ms", -int(seconds * 1000))
        leases = {name: at for key in self.keys("mf:sending:*") for name, at in self.members(key).items()}
        now = self.client.time()[0] * 1000
        self.late += [one for one in self.taken if leases[one.id] <= now]
        self.taken = [one for one in self.taken if leases[one.id] > now]

    # Invariants.

    @invariant()
    def who_waits_is_in_one_queue_and_who_does_not_in_none(self) -> None:
        places = [
            one for pattern in ("mf:due:*", "mf:sending:*") for key in self.keys(pattern) for one in self.members(key)
        ]
        waiting = {one for one, state in self.states.items() if state is DeliveryState.WAITING}
        assert sorted(places) == sorted(waiting)
        assert set(self.members("mf:deliveries")) == waiting
        for delivery_id, state in self.states.items():
            record = self.deliveries.read(delivery_id, self.owners[delivery_id])
            assert record is not None
            assert record.state is state

    @invariant()
    def no_host_queue_is_looked_at_too_late(self) -> None:
        now = self.client.time()[0] * 1000 + 1000
        for tenant in TENANTS:
            host_queues = self.members(f"mf:lanes:{tenant}")
            for host in HOSTS:
                due = self.members(f"mf:due:{tenant}:{host}")
                sending = self.members(f"mf:sending:{tenant}:{host}")
                until = float(str(self.client.hget(f"mf:breaker:{tenant}:{host}", "until_ms") or 0))
                if sending:
                    assert host_queues[host] <= max(now, *sending.values())
                elif due:
                    assert host_queues[host] <= max(now, min(due.values()), until)
            paused = float(str(self.client.hget(f"mf:receivers:{tenant}", "until_ms") or 0))
            if host_queues:
                assert self.members("mf:lanes")[tenant] <= max(now, min(host_queues.values()), paused)

    def teardown(self) -> None:
        """At the end, with healthy receivers, everything arrives."""
        self.late.clear()
        for _ in range(len(self.states) + 20):
            for delivery in self.taken:
                self.deliveries.ended(delivery, DeliveryState.DELIVERED, tried(delivery, 200))
                self.states[delivery.id] = DeliveryState.DELIVERED
            self.taken.clear()
            if DeliveryState.WAITING not in self.states.values():
                break
            self.time_passes(7000)
            self.a_courier_takes_what_is_due()
        assert DeliveryState.WAITING not in self.states.values()
        assert self.keys("mf:due:*") == self.keys("mf:sending:*") == self.keys("mf:deliveries") == []

    def _see_disabled(self) -> None:
        for delivery_id, state in self.states.items():
            record = self.deliveries.read(delivery_id, self.owners[delivery_id])
            if state is DeliveryState.WAITING and record is not None and record.state is DeliveryState.DISABLED:
                digest = hashlib.sha1(record.url.encode(), usedforsecurity=False).hexdigest()
                assert self.client.exists(f"mf:disabled:{record.tenant}:{digest}")
                self.states[delivery_id] = DeliveryState.DISABLED

    def keys(self, pattern: str) -> list[str]:
        return sorted(self.client.scan_iter(pattern, count=1000))

    def members(self, key: str) -> dict[str, float]:
        return dict(cast("list[tuple[str, float]]", self.client.zrange(key, 0, -1, withscores=True)))


def host_of(delivery: Delivery) -> str:
    return delivery.url.split("/")[2]


def tried(delivery: Delivery, status: int | None) -> DeliveryAttempt:
    outcome = {200: DeliveryAttemptOutcome.DELIVERED, 410: DeliveryAttemptOutcome.REFUSED}.get(
        status or 0, DeliveryAttemptOutcome.FAILED
    )
    at = datetime.fromtimestamp(delivery.now_s, UTC)
    duration_s = 15.0 if status is None else 0.1  # without an answer it hung
    return DeliveryAttempt(number=delivery.attempts_total, at=at, duration_s=duration_s, outcome=outcome, status=status)


@pytest.fixture
def machine(redis_client: redis.Redis) -> Iterator[type[HostQueuesMachine]]:
    HostQueuesMachine.client = redis_client
    yield HostQueuesMachine
    del HostQueuesMachine.client


def test_whoever_waits_is_sent_whatever_happened_before(machine: type[HostQueuesMachine]) -> None:
    examples = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))

    run_state_machine_as_test(machine, settings=examples)
