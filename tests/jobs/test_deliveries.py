"""The webhook queues and log on a real Redis: what is sent when, and what is recorded."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
import redis

from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import Breaker, Deliveries, Delivery, Redelivered, Shares
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.delivery import DeliveryAttempt, DeliveryAttemptOutcome, DeliveryRecord, DeliveryState
from maskfleet.jobs.schema.spec import ENDS, EventName, Webhook
from tests.taking import take_due
from tests.waiting import wait_until

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
URL = "https://example.com/hook"
LONG_AGO, LATER = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def create(ledger: Ledger, url: str = URL, tenant: str = "ant", events: tuple[EventName, ...] = ENDS) -> str:
    job = NewJobs(tenant, "sam.m.normal", (SPEC,), 600, Webhook(url=url, events=events))
    return ledger.create(job, max_in_flight=10_000, idempotency_ttl_s=60).id


def canceled(ledger: Ledger, url: str = URL, tenant: str = "ant") -> str:
    job_id = create(ledger, url, tenant)
    ledger.cancel(job_id, tenant)
    return job_id


def tried(delivery: Delivery, status: int | None = 500) -> DeliveryAttempt:
    return DeliveryAttempt(
        number=delivery.attempts_total,
        at=datetime.fromtimestamp(delivery.now_s, UTC),
        duration_s=0.1,
        outcome=DeliveryAttemptOutcome.DELIVERED if status == 200 else DeliveryAttemptOutcome.FAILED,
        status=status,
        error=None if status else "ConnectTimeout",
        answer="said",
    )


def only(deliveries: Deliveries, job_id: str, tenant: str = "ant") -> DeliveryRecord:
    [record] = deliveries.of(job_id, tenant)
    return record


def test_a_webhook_shows_each_try_until_it_arrives(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    job_id = canceled(ledger)
    waiting = only(deliveries, job_id)

    [first] = take_due(deliveries)
    deliveries.postponed(first, 0, tried(first, 503))
    [second] = wait_until(lambda: take_due(deliveries))
    deliveries.ended(second, DeliveryState.DELIVERED, tried(second, 200))

    assert (waiting.state, waiting.next_try_ms, waiting.tries) == (DeliveryState.WAITING, waiting.created_ms, ())
    assert [(one.attempts_since_queued, one.attempts_total) for one in (first, second)] == [(1, 1), (2, 2)]
    told = only(deliveries, job_id)
    assert (told.id, told.state, told.next_try_ms) == (first.id, DeliveryState.DELIVERED, None)
    assert [(attempt.number, attempt.status, attempt.answer) for attempt in told.tries] == [
        (1, 503, "said"),
        (2, 200, "said"),
    ]
    assert JobCounts(redis_client).totals()["webhooks_delivered"] == 1
    view = told.view()
    assert (view.type, view.job_id, view.url, view.ended_at is not None) == ("job.canceled", job_id, URL, True)


def test_of_another_tenants_webhooks_nothing_is_told_or_sent(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = canceled(ledger)
    told = only(deliveries, job_id)

    assert deliveries.of(job_id, "bee") == []
    assert deliveries.read(told.id, "bee") is None
    assert deliveries.redeliver(told.id, "bee") is Redelivered.UNKNOWN
    assert deliveries.redeliver_range("bee", LONG_AGO, LATER, only_failed=False) == ()
    assert deliveries.read(told.id, "ant") == told


def test_a_webhook_is_sent_again_under_its_own_id_with_its_own_bytes(ledger: Ledger, deliveries: Deliveries) -> None:
    canceled(ledger)
    [first] = take_due(deliveries)
    kept = [deliveries.keep_body(first, body) for body in ("one", "another")]
    deliveries.ended(first, DeliveryState.GIVEN_UP, tried(first))

    reply = deliveries.redeliver(first.id, "ant")

    [again] = take_due(deliveries)
    assert (kept, reply) == (["one", "one"], Redelivered.QUEUED)
    assert (again.id, again.body, again.attempts_since_queued, again.attempts_total, again.forced) == (
        first.id,
        "one",
        1,
        2,
        True,
    )
    assert deliveries.redeliver(first.id, "ant") is Redelivered.WAITING
    assert take_due(deliveries) == []


def test_what_failed_in_a_time_is_sent_again_and_nothing_else(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    states = [*DeliveryState]
    for _ in states:
        canceled(ledger)
    ids = {state: one.id for state, one in zip(states, take_due(deliveries, 100), strict=True)}
    for delivery in take_due(deliveries, 100):
        raise AssertionError(f"{delivery} is due twice")
    for state, delivery_id in ids.items():
        if state is not DeliveryState.WAITING:
            record = deliveries.read(delivery_id, "ant")
            assert record is not None
            deliveries.ended(Delivery(delivery_id, "ant", record.subject, "", URL, "", 1, 1, False, 0), state)
    too_old = ids[DeliveryState.REFUSED]
    redis_client.zadd("mf:deliveries:ant", {too_old: 0})

    failed = deliveries.redeliver_range("ant", datetime.now(UTC) - timedelta(hours=1), LATER)
    rest = deliveries.redeliver_range("ant", LONG_AGO, LATER, only_failed=False)

    assert set(failed) == {ids[DeliveryState.GIVEN_UP], ids[DeliveryState.DISABLED]}
    assert set(rest) == {*failed, ids[DeliveryState.DELIVERED]}
    dropped = deliveries.read(ids[DeliveryState.DROPPED], "ant")
    assert dropped is not None
    assert dropped.state is DeliveryState.DROPPED


def test_a_range_is_sent_again_in_pages_up_to_its_limit(ledger: Ledger, deliveries: Deliveries) -> None:
    for _ in range(7):
        canceled(ledger)
    for delivery in take_due(deliveries, 100):
        deliveries.ended(delivery, DeliveryState.GIVEN_UP)

    first = deliveries.redeliver_range("ant", LONG_AGO, LATER, limit=3)
    rest = deliveries.redeliver_range("ant", LONG_AGO, LATER)

    assert (len(first), len(rest)) == (3, 4)
    assert not set(first) & set(rest)


def test_a_410_disables_an_endpoint_until_it_answers_well(ledger: Ledger, deliveries: Deliveries) -> None:
    first, other = canceled(ledger), canceled(ledger, tenant="bee")
    [gone] = [one for one in take_due(deliveries) if one.tenant == "ant"]
    deliveries.ended(gone, DeliveryState.REFUSED, tried(gone, 410))

    job_id, elsewhere = canceled(ledger), canceled(ledger, f"{URL}/2")
    due = take_due(deliveries)
    told = only(deliveries, job_id)
    deliveries.redeliver(told.id, "ant")
    [again] = take_due(deliveries)
    deliveries.ended(again, DeliveryState.DELIVERED, tried(again, 200))

    assert only(deliveries, first).state is DeliveryState.REFUSED
    assert [one.subject for one in due] == [elsewhere]
    assert only(deliveries, other, "bee").state is DeliveryState.WAITING
    assert (told.state, told.tries) == (DeliveryState.DISABLED, ())
    canceled(ledger)
    assert len(take_due(deliveries)) == 1


def test_what_is_known_of_an_endpoint_is_forgotten_by_itself(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    canceled(ledger)
    [gone] = take_due(deliveries)

    deliveries.ended(gone, DeliveryState.REFUSED, tried(gone, 410))

    assert list(redis_client.scan_iter("mf:disabled:ant:*")) != []
    assert all(redis_client.ttl(key) > 0 for key in redis_client.scan_iter("mf:d*") if key != "mf:deliveries")


def test_a_ping_is_sent_though_its_endpoint_is_disabled(ledger: Ledger, deliveries: Deliveries) -> None:
    canceled(ledger)
    [gone] = take_due(deliveries)
    deliveries.ended(gone, DeliveryState.REFUSED, tried(gone, 410))

    delivery_id = deliveries.ping("ant", URL, "{}")

    [ping] = take_due(deliveries)
    assert (ping.id, ping.subject, ping.body, ping.event) == (delivery_id, "", "{}", "ping")
    record = deliveries.read(delivery_id, "ant")
    assert record is not None
    assert (record.view().type, record.view().job_id) == ("webhook.ping", None)


def test_a_report_that_comes_late_changes_nothing_but_an_arrival_counts(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = canceled(ledger)
    [slow] = take_due(deliveries, lease_s=0)
    [again] = wait_until(lambda: take_due(deliveries))

    deliveries.ended(slow, DeliveryState.GIVEN_UP, tried(slow))
    late = only(deliveries, job_id)
    deliveries.ended(slow, DeliveryState.DELIVERED, tried(slow, 200))
    deliveries.postponed(again, 0, tried(again))

    told = only(deliveries, job_id)
    assert (late.state, told.state) == (DeliveryState.WAITING, DeliveryState.DELIVERED)
    assert [attempt.number for attempt in told.tries] == [1, 1, 2]
    assert deliveries.waiting() == 0


def test_a_report_that_is_made_twice_counts_once(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = canceled(ledger)
    [delivery] = take_due(deliveries)

    for _ in range(2):
        deliveries.postponed(delivery, 60, tried(delivery))

    assert len(only(deliveries, job_id).tries) == 1


def test_of_many_tries_the_latest_are_kept(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = canceled(ledger)
    for _ in range(25):
        [delivery] = take_due(deliveries)
        deliveries.ended(delivery, DeliveryState.GIVEN_UP, tried(delivery, 404))
        deliveries.redeliver(delivery.id, "ant")

    assert [attempt.number for attempt in only(deliveries, job_id).tries] == list(range(6, 26))


# One receiver does not delay another.


def test_a_host_is_sent_no_more_at_once_than_it_may(ledger: Ledger, deliveries: Deliveries) -> None:
    for number in range(20):
        canceled(ledger, f"https://slow.example.com/{number}")
    for _ in range(3):
        canceled(ledger, "https://other.example.com/")
    shares = Shares(per_host=4, per_tenant=100, sending={})

    first, second = take_due(deliveries, 100, shares=shares), take_due(deliveries, 100, shares=shares)
    done = next(one for one in first if "slow" in one.url)
    deliveries.ended(done, DeliveryState.DELIVERED, tried(done, 200))

    assert Counter("slow" in one.url for one in first) == {True: 4, False: 3}
    assert second == []
    assert len(take_due(deliveries, 100, shares=shares)) == 1


def test_a_tenant_has_no_more_than_its_share_of_a_courier(ledger: Ledger, deliveries: Deliveries) -> None:
    for number in range(300):
        canceled(ledger, f"https://host-{number}.example.com/")
    for _ in range(2):
        canceled(ledger, tenant="bee")

    due = take_due(deliveries, 32, shares=Shares(per_host=8, per_tenant=24, sending={"ant": 20}))

    assert Counter(one.tenant for one in due) == {"ant": 4, "bee": 2}


def test_tenants_and_hosts_take_turns(ledger: Ledger, deliveries: Deliveries) -> None:
    for tenant in ("ant", "bee"):
        for _ in range(10):
            for host in ("a", "b"):
                canceled(ledger, f"https://{host}.example.com/", tenant)

    taken = [take_due(deliveries, 1, shares=Shares(per_host=5, per_tenant=9, sending={}))[0] for _ in range(12)]

    assert max(Counter((one.tenant, one.url) for one in taken).values()) <= 5
    assert len({(one.tenant, one.url) for one in taken}) == 4


def test_a_host_that_fails_in_a_row_is_left_alone_and_then_looked_at(ledger: Ledger, redis_client: redis.Redis) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=3, first_s=0.5))
    jobs = [canceled(ledger) for _ in range(10)]
    for delivery in take_due(deliveries, 3):
        deliveries.postponed(delivery, 600, tried(delivery, None))

    open_now = take_due(deliveries, 10)
    probes = wait_until(lambda: take_due(deliveries, 10))
    with_probe_under_way = take_due(deliveries, 10)
    deliveries.ended(probes[0], DeliveryState.DELIVERED, tried(probes[0], 200))
    closed = take_due(deliveries, 10)

    assert (open_now, len(probes), with_probe_under_way, len(closed)) == ([], 1, [], 6)
    # Those that waited were charged no attempt.
    assert {one.attempts_since_queued for one in (*probes, *closed)} == {1}
    assert sum(len(only(deliveries, job).tries) for job in jobs) == 4


def test_a_breaker_waits_longer_each_time_that_the_host_is_still_away(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=1, first_s=100))
    for _ in range(10):
        canceled(ledger)
    waits = []
    for _ in range(7):
        redis_client.hset("mf:breaker:ant:example.com", "until_ms", 0) if waits else None
        redis_client.zadd("mf:lanes:ant", {"example.com": 0})
        redis_client.zadd("mf:lanes", {"ant": 0})
        [delivery] = take_due(deliveries, 1)
        deliveries.postponed(delivery, 10_000, tried(delivery, 502))
        until_ms = int(str(redis_client.hget("mf:breaker:ant:example.com", "until_ms")))
        waits.append(round(until_ms / 1000 - redis_client.time()[0], -2))

    assert waits == [100, 200, 400, 800, 1600, 3200, 3200]


@pytest.mark.parametrize("status", [400, 404, 301, 410])
def test_a_webhook_that_is_not_wanted_says_nothing_about_its_host(
    ledger: Ledger, redis_client: redis.Redis, status: int
) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=2, first_s=100))
    for number in range(6):
        canceled(ledger, f"{URL}/{number}")
    for delivery in take_due(deliveries, 5):
        deliveries.postponed(delivery, 600, tried(delivery, status))

    assert len(take_due(deliveries, 10)) == 1


def test_what_its_owner_sends_again_waits_for_no_breaker(ledger: Ledger, redis_client: redis.Redis) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=1, first_s=100))
    canceled(ledger)
    [delivery] = take_due(deliveries)
    deliveries.postponed(delivery, 600, tried(delivery, None))
    canceled(ledger)
    before = take_due(deliveries)

    deliveries.redeliver(delivery.id, "ant")

    assert before == []
    assert [one.id for one in take_due(deliveries)] == [delivery.id]


def test_a_ping_waits_for_no_breaker(ledger: Ledger, redis_client: redis.Redis) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=1, first_s=100))
    canceled(ledger)
    [delivery] = take_due(deliveries)
    deliveries.postponed(delivery, 0, tried(delivery, None))

    ping = deliveries.ping("ant", URL, "{}")

    assert [one.id for one in take_due(deliveries)] == [ping]


def test_another_tenants_breaker_is_its_own(ledger: Ledger, redis_client: redis.Redis) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=1, first_s=100))
    canceled(ledger)
    [delivery] = take_due(deliveries)
    deliveries.postponed(delivery, 600, tried(delivery, None))
    canceled(ledger)
    canceled(ledger, tenant="bee")

    assert [one.tenant for one in take_due(deliveries)] == ["bee"]


def test_a_webhook_that_is_held_back_for_a_week_is_given_up(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    job_id = canceled(ledger)
    told = only(deliveries, job_id)
    redis_client.hset(f"mf:delivery:{told.id}", "queued_ms", told.created_ms - 7 * 86400 * 1000 - 1)

    assert take_due(deliveries) == []
    assert only(deliveries, job_id).state is DeliveryState.GIVEN_UP
    assert deliveries.waiting() == 0


# Retention.


def test_a_webhook_outlives_its_schedule_and_then_is_kept_as_long_as_its_job(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    deliveries = Deliveries(redis_client, retention_s=3600)
    job_id = canceled(ledger)
    [delivery] = take_due(deliveries)
    deliveries.postponed(delivery, 0, tried(delivery))
    keys = [f"mf:delivery:{delivery.id}", f"mf:tries:{delivery.id}"]
    waiting = [redis_client.ttl(key) for key in keys]
    [again] = wait_until(lambda: take_due(deliveries))
    deliveries.ended(again, DeliveryState.DELIVERED, tried(again, 200))

    assert all(ttl > 13 * 86400 for ttl in waiting)
    assert all(3500 < redis_client.ttl(key) <= 3600 for key in keys)
    assert redis_client.ttl(f"mf:told:{job_id}") > 13 * 86400


def test_a_job_with_a_short_retention_is_kept_until_its_webhook_has_its_bytes(redis_client: redis.Redis) -> None:
    ledger, deliveries = Ledger(redis_client, retention_s=60), Deliveries(redis_client, retention_s=60)
    job_id = canceled(ledger)
    while_held_back = redis_client.ttl(f"mf:job:{job_id}")

    [delivery] = take_due(deliveries)
    deliveries.keep_body(delivery, "{}")

    assert while_held_back > 6 * 86400
    assert 0 < redis_client.ttl(f"mf:job:{job_id}") <= 60
    assert only(deliveries, job_id).state is DeliveryState.WAITING


def test_a_job_whose_webhook_is_not_sent_is_kept_no_longer_for_it(redis_client: redis.Redis) -> None:
    ledger, deliveries = Ledger(redis_client, retention_s=60), Deliveries(redis_client, retention_s=60)
    canceled(ledger)
    [gone] = take_due(deliveries)
    deliveries.ended(gone, DeliveryState.REFUSED, tried(gone, 410))

    job_id = canceled(ledger)
    take_due(deliveries)

    assert only(deliveries, job_id).state is DeliveryState.DISABLED
    assert 0 < redis_client.ttl(f"mf:job:{job_id}") <= 60


def test_a_tenants_log_forgets_what_has_expired(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    for _ in range(6):
        told = only(deliveries, canceled(ledger))
        redis_client.delete(f"mf:delivery:{told.id}")

    assert redis_client.zcard("mf:deliveries:ant") <= 2
    assert take_due(deliveries) == []
    assert deliveries.waiting() == 0


def test_a_deleted_job_takes_its_webhooks_with_it(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    job_id = canceled(ledger)
    [delivery] = take_due(deliveries)
    deliveries.keep_body(delivery, "the job's own words")
    deliveries.postponed(delivery, 0, tried(delivery))

    ledger.begin_deletion(job_id, "ant")
    ledger.delete(job_id, "ant")

    assert take_due(deliveries) == []
    assert deliveries.waiting() == 0
    assert not [key for key in redis_client.scan_iter("mf:*") if job_id in str(key)]
    assert deliveries.redeliver(delivery.id, "ant") is Redelivered.UNKNOWN


# The start of a job.


def test_the_first_start_of_a_job_is_told_once(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = create(ledger, events=(EventName.STARTED,))
    for charged in (False, True, True):
        record = ledger.claim(job_id, "node", lease_s=30, max_attempts=9)
        assert record is not None
        ledger.release(record, delay_s=0, charged=charged)

    [delivery] = take_due(deliveries, 9)

    assert (delivery.id, delivery.event) == (f"msg_{job_id}_1_started", EventName.STARTED)


def test_a_start_that_was_not_asked_for_is_not_told(ledger: Ledger, deliveries: Deliveries) -> None:
    ledger.claim(create(ledger), "node", lease_s=30, max_attempts=3)

    assert deliveries.waiting() == 0


def test_of_a_start_nobody_is_told_after_the_end(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = create(ledger, events=tuple(EventName))
    record = ledger.claim(job_id, "node", lease_s=30, max_attempts=3)
    assert record is not None

    ledger.fail(record, "internal_error", "It broke.")

    assert [delivery.event for delivery in take_due(deliveries, 9)] == ["failed"]
    assert [told.state for told in deliveries.of(job_id, "ant")] == [DeliveryState.DROPPED, DeliveryState.WAITING]


def test_a_retried_job_starts_anew(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = create(ledger, events=(EventName.STARTED,))
    record = ledger.claim(job_id, "node", lease_s=30, max_attempts=3)
    assert record is not None
    ledger.fail(record, "internal_error", "It broke.")
    ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=10)
    ledger.claim(job_id, "node", lease_s=30, max_attempts=3)

    assert [delivery.id for delivery in take_due(deliveries, 9)] == [f"msg_{job_id}_2_started"]
