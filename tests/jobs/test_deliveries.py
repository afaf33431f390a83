"""The webhook queues and log on a real Redis: what is sent when, and what is recorded."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
import redis

from maskfleet.jobs.errors import TooManyRedeliveries
from maskfleet.jobs.ledger.connection import load_script
from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import (
    MAX_REDELIVERED,
    Breaker,
    Deliveries,
    Delivery,
    RangeRedelivered,
    Redelivered,
    Shares,
)
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.delivery import DeliveryAttempt, DeliveryAttemptOutcome, DeliveryRecord, DeliveryState
from maskfleet.jobs.schema.spec import ENDS, EventName, Webhook
from tests import taking
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
    assert deliveries.redeliver_range("bee", LONG_AGO, LATER, only_failed=False) == RangeRedelivered()
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

    assert set(failed.ids) == {ids[DeliveryState.GIVEN_UP], ids[DeliveryState.DISABLED]}
    assert rest.ids == (ids[DeliveryState.DELIVERED],)
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

    assert (len(first.ids), len(rest.ids)) == (3, 4)
    assert (first.more, rest.more) == (True, False)
    assert not set(first.ids) & set(rest.ids)


def test_a_range_waits_for_a_breaker_and_for_an_endpoint_that_said_410(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=1, first_s=100))
    down, gone = canceled(ledger), canceled(ledger, "https://gone.example.com/")
    for delivery in take_due(deliveries):
        status = 410 if "gone" in delivery.url else None
        deliveries.ended(delivery, DeliveryState.REFUSED if status else DeliveryState.GIVEN_UP, tried(delivery, status))

    queued = deliveries.redeliver_range("ant", LONG_AGO, LATER)
    due = take_due(deliveries)
    deliveries.redeliver(only(deliveries, gone).id, "ant")
    forced = take_due(deliveries)

    assert len(queued.ids) == 2
    assert due == []
    assert only(deliveries, down).state is DeliveryState.WAITING
    assert [one.subject for one in forced] == [gone]


def test_a_range_that_is_under_way_is_not_sent_a_second_time(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    for _ in range(4):
        canceled(ledger)
    for delivery in take_due(deliveries):
        deliveries.ended(delivery, DeliveryState.DELIVERED, tried(delivery, 200))

    def again() -> int:
        return len(deliveries.redeliver_range("ant", LONG_AGO, LATER, only_failed=False).ids)

    first, at_once = again(), again()
    [arrived, failed, *_] = take_due(deliveries)
    deliveries.ended(arrived, DeliveryState.DELIVERED, tried(arrived, 200))
    deliveries.ended(failed, DeliveryState.GIVEN_UP, tried(failed, 500))
    afterwards = again()  # the one that failed; the others are being sent, or arrived
    redis_client.hincrby(f"mf:delivery:{arrived.id}", "redelivered_ms", -3600 * 1000)
    an_hour_later = again()

    assert (first, at_once, afterwards, an_hour_later) == (4, 0, 1, 1)


def test_a_tenant_has_so_many_sent_again_within_an_hour_and_no_more(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    for tenant in ("ant", "ant", "ant", "bee"):
        canceled(ledger, tenant=tenant)
    for delivery in take_due(deliveries):
        deliveries.ended(delivery, DeliveryState.GIVEN_UP, tried(delivery))
    redis_client.set("mf:redelivered:ant", MAX_REDELIVERED - 1, ex=600)

    queued = deliveries.redeliver_range("ant", LONG_AGO, LATER)
    with pytest.raises(TooManyRedeliveries) as refused:
        deliveries.redeliver_range("ant", LONG_AGO, LATER)
    with pytest.raises(TooManyRedeliveries):
        deliveries.redeliver(queued.ids[0], "ant")
    others = deliveries.redeliver_range("bee", LONG_AGO, LATER)

    assert (len(queued.ids), queued.more, len(others.ids)) == (1, True, 1)
    assert 590 <= (refused.value.retry_after_s or 0) <= 600
    assert 0 < redis_client.ttl("mf:redelivered:bee") <= 3600


def test_a_call_that_runs_twice_finds_what_it_queued(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    canceled(ledger)
    [delivery] = take_due(deliveries)
    deliveries.ended(delivery, DeliveryState.GIVEN_UP, tried(delivery))
    redeliver = load_script(redis_client, "redeliver")

    replies = [redeliver(args=["ant", "a-call", ",given_up,", 10, delivery.id]) for _ in range(2)]

    assert replies == [[delivery.id, "queued"]] * 2
    assert redis_client.get("mf:redelivered:ant") == "1"


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
    shares = Shares(per_host=4, senders=1000, sending={})

    first, second = take_due(deliveries, 100, shares=shares), take_due(deliveries, 100, shares=shares)
    done = next(one for one in first if "slow" in one.url)
    deliveries.ended(done, DeliveryState.DELIVERED, tried(done, 200))

    assert Counter("slow" in one.url for one in first) == {True: 4, False: 3}
    assert second == []
    assert len(take_due(deliveries, 100, shares=shares)) == 1


def queue_many(ledger: Ledger, *tenants: str) -> None:
    """Queue more for each tenant, to as many hosts, than a courier has senders."""
    for tenant in tenants:
        for number in range(40):
            canceled(ledger, f"https://host-{number}.example.com/", tenant)


def answer(
    ledger: Ledger, deliveries: Deliveries, tenant: str, duration_s: float = 0.1, status: int | None = 200
) -> None:
    """Have a receiver of the tenant's answer, or hang."""
    canceled(ledger, "https://first.example.com/", tenant)
    [delivery] = take_due(deliveries)
    attempt = tried(delivery, status).model_copy(update={"duration_s": duration_s})
    deliveries.ended(delivery, DeliveryState.DELIVERED if status == 200 else DeliveryState.GIVEN_UP, attempt)


def shared_out(deliveries: Deliveries, sending: dict[str, int], *hanging: str, senders: int = 32) -> Counter[str]:
    """What a courier takes of what is due, by tenant, when it is sending so much."""
    shares = Shares(8, senders, sending, frozenset(hanging))
    return Counter(one.tenant for one in take_due(deliveries, senders - sum(sending.values()), shares=shares))


@pytest.mark.parametrize(("tenants", "each"), [(1, 16), (2, 10), (3, 8), (7, 4), (31, 1)])
def test_tenants_whose_receivers_answer_share_a_courier_so_that_one_more_finds_as_much(
    ledger: Ledger, deliveries: Deliveries, tenants: int, each: int
) -> None:
    names = [f"ant-{number}" for number in range(tenants)]
    for name in names:
        answer(ledger, deliveries, name)
    queue_many(ledger, *names)

    assert shared_out(deliveries, {}) == dict.fromkeys(names, each)
    assert shared_out(deliveries, dict.fromkeys(names, each)) == {}


def test_a_tenant_begins_with_few_until_one_of_its_receivers_answers(ledger: Ledger, deliveries: Deliveries) -> None:
    queue_many(ledger, "ant")
    shares = Shares(8, 32, {})

    first = take_due(deliveries, 32, shares=shares)
    deliveries.ended(first[0], DeliveryState.DELIVERED, tried(first[0], 200))

    assert len(first) == 4
    assert shared_out(deliveries, {"ant": 3}) == {"ant": 13}


@pytest.mark.parametrize(("status", "duration_s"), [(None, 15.0), (200, 12.0), (None, 0.1)])
def test_a_receiver_that_hangs_is_slow_or_refuses_proves_nothing(
    ledger: Ledger, deliveries: Deliveries, status: int | None, duration_s: float
) -> None:
    answer(ledger, deliveries, "ant", duration_s, status)
    queue_many(ledger, "ant")

    assert shared_out(deliveries, {}) == {"ant": 4}


def test_a_hang_takes_the_proof_away_and_the_next_answer_gives_it_back(ledger: Ledger, deliveries: Deliveries) -> None:
    for duration_s, status in ((0.1, 200), (15.0, None)):
        answer(ledger, deliveries, "ant", duration_s, status)
    answer(ledger, deliveries, "bee")
    queue_many(ledger, "ant", "bee")

    assert shared_out(deliveries, {"ant": 0, "bee": 16}) == {"ant": 12}
    answer_of = take_due(deliveries, 1, shares=Shares(8, 32, {}))[0]
    deliveries.ended(answer_of, DeliveryState.DELIVERED, tried(answer_of, 200))
    assert shared_out(deliveries, {"bee": 16}) != {}


def test_attempts_that_take_long_right_now_count_before_they_are_over(ledger: Ledger, deliveries: Deliveries) -> None:
    for tenant in ("ant", "bee"):
        answer(ledger, deliveries, tenant)
    queue_many(ledger, "ant", "bee")

    assert shared_out(deliveries, {"ant": 12}, "ant") == {"bee": 10}


@pytest.mark.parametrize("strangers", [6, 24, 60])
def test_tenants_whose_receivers_do_not_answer_leave_a_quarter_to_those_whose_receivers_do(
    ledger: Ledger, deliveries: Deliveries, strangers: int
) -> None:
    answer(ledger, deliveries, "bee")
    names = [f"ant-{number}" for number in range(strangers)]
    queue_many(ledger, *names)

    taken = shared_out(deliveries, {})
    queue_many(ledger, "bee")
    of_the_bee = shared_out(deliveries, taken)

    assert 18 <= sum(taken.values()) <= 24
    assert max(taken.values()) <= 4
    assert of_the_bee == {"bee": (32 - sum(taken.values())) // 2}


def test_a_courier_with_a_single_sender_sends_for_everyone(ledger: Ledger, deliveries: Deliveries) -> None:
    for tenant in ("ant", "bee"):
        canceled(ledger, tenant=tenant)

    assert [shared_out(deliveries, {}, senders=1) for _ in range(3)] == [{"ant": 1}, {"bee": 1}, {}]


def test_a_host_leaves_some_of_its_tenants_share_to_the_others(ledger: Ledger, deliveries: Deliveries) -> None:
    for _ in range(20):
        canceled(ledger, "https://slow.example.com/")
    due = take_due(deliveries, 32, shares=Shares(8, 32, {}))
    canceled(ledger, "https://other.example.com/")

    assert len(due) == 3
    assert [one.url for one in take_due(deliveries, 29, shares=Shares(8, 32, {"ant": 3}, frozenset({"ant"})))] == [
        "https://other.example.com/"
    ]


def test_more_tenants_than_one_look_sees_hide_nobody(ledger: Ledger, deliveries: Deliveries) -> None:
    """Their share is in use; who has one left comes behind them."""
    answer(ledger, deliveries, "bee")
    strangers = {f"wasp-{number}": 1 for number in range(24)}
    for number in range(300):
        canceled(ledger, tenant=f"ant-{number}")
    canceled(ledger, tenant="bee")

    looks = [shared_out(deliveries, strangers) for _ in range(3)]

    assert sum(looks, Counter()) == {"bee": 1}


def test_a_host_that_hung_gets_less_at_once_and_says_so_until_it_answers(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=5, quick_s=5))
    for _ in range(20):
        canceled(ledger)
    [first, *_] = take_due(deliveries, 1)
    deliveries.postponed(first, 600, tried(first, None).model_copy(update={"duration_s": 15.0}))

    hung = take_due(deliveries, 32, shares=Shares(8, 320, {}))
    deliveries.ended(hung[0], DeliveryState.DELIVERED, tried(hung[0], 200))
    well = take_due(deliveries, 32, shares=Shares(8, 320, {"ant": 1}))

    assert [one.hung for one in hung] == [True, True]
    assert [one.hung for one in well] == [False] * 7


def test_a_tenant_none_of_whose_hosts_answers_is_left_alone_and_then_probed(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    """A thousand names for one receiver that hangs have a thousand breakers, and one tenant."""
    deliveries = Deliveries(redis_client, Breaker(failures=3, first_s=0.5, quick_s=5))
    for number in range(20):
        canceled(ledger, f"https://host-{number}.example.com/")
    canceled(ledger, tenant="bee")
    for delivery in [one for one in take_due(deliveries, 4, shares=Shares(8, 32, {})) if one.tenant == "ant"]:
        deliveries.postponed(delivery, 600, hung(delivery))

    paused = take_due(deliveries, 32)
    probes = wait_until(lambda: take_due(deliveries, 32))
    under_way = take_due(deliveries, 32)
    deliveries.postponed(probes[0], 600, hung(probes[0]))
    pauses = redis_client.hget("mf:receivers:ant", "pauses")
    second = wait_until(lambda: take_due(deliveries, 32))
    deliveries.ended(second[0], DeliveryState.DELIVERED, tried(second[0], 200))

    assert [one.tenant for one in paused] in (["bee"], [])
    assert (len(probes), under_way, len(second)) == (1, [], 1)
    assert pauses == "2"  # each twice as long as the one before
    assert len(take_due(deliveries, 32)) == 14


def test_hosts_that_hang_again_after_an_answer_pause_their_tenant_again(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=2, first_s=100, quick_s=5))
    paused = []
    for _ in range(2):
        for number in range(2):
            canceled(ledger, f"https://host-{number}.example.com/")
        for delivery in take_due(deliveries):
            deliveries.ended(delivery, DeliveryState.GIVEN_UP, hung(delivery))
        canceled(ledger, "https://host-2.example.com/")
        paused.append(take_due(deliveries))
        deliveries.ping("ant", "https://well.example.com/", "{}")
        [ping] = take_due(deliveries, 1)
        deliveries.ended(ping, DeliveryState.DELIVERED, tried(ping, 200))
        for delivery in take_due(deliveries):
            deliveries.ended(delivery, DeliveryState.DELIVERED, tried(delivery, 200))

    assert paused == [[], []]


def test_what_a_paused_tenant_asks_for_is_sent_first_and_at_once(ledger: Ledger, redis_client: redis.Redis) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=2, first_s=100, quick_s=5))
    for number in range(6):
        canceled(ledger, f"https://host-{number}.example.com/")
    for delivery in take_due(deliveries, 2):
        deliveries.postponed(delivery, 600, hung(delivery))
    before = take_due(deliveries)

    ping = deliveries.ping("ant", URL, "{}")

    assert before == []
    assert [one.id for one in take_due(deliveries)] == [ping]
    assert take_due(deliveries) == []


def test_one_host_that_hangs_does_not_pause_its_tenants_others(ledger: Ledger, redis_client: redis.Redis) -> None:
    deliveries = Deliveries(redis_client, Breaker(failures=2, first_s=100, quick_s=5))
    for _ in range(2):
        canceled(ledger)
    for delivery in take_due(deliveries):
        deliveries.postponed(delivery, 600, hung(delivery))

    elsewhere = canceled(ledger, "https://other.example.com/")

    assert [one.subject for one in take_due(deliveries)] == [elsewhere]


def hung(delivery: Delivery) -> DeliveryAttempt:
    return tried(delivery, None).model_copy(update={"duration_s": 15.0})


def test_tenants_and_hosts_take_turns(ledger: Ledger, deliveries: Deliveries) -> None:
    for tenant in ("ant", "bee"):
        for _ in range(10):
            for host in ("a", "b"):
                canceled(ledger, f"https://{host}.example.com/", tenant)

    taken = [take_due(deliveries, 1, shares=Shares(per_host=5, senders=1000, sending={}))[0] for _ in range(12)]

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
    kept = only(deliveries, canceled(ledger))

    deliveries.redeliver_range("ant", LONG_AGO, LATER, only_failed=False)

    assert redis_client.zrange("mf:deliveries:ant", 0, -1) == [kept.id]
    assert [delivery.id for delivery in take_due(deliveries)] == [kept.id]
    assert deliveries.waiting() == 1


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
        record = taking.claim(ledger, job_id, "node", lease_s=30, max_attempts=9)
        assert record is not None
        ledger.release(record, delay_s=0, charged=charged)

    [delivery] = take_due(deliveries, 9)

    assert (delivery.id, delivery.event) == (f"msg_{job_id}_1_started", EventName.STARTED)


def test_a_start_that_was_not_asked_for_is_not_told(ledger: Ledger, deliveries: Deliveries) -> None:
    taking.claim(ledger, create(ledger), "node", lease_s=30, max_attempts=3)

    assert deliveries.waiting() == 0


def test_of_a_start_nobody_is_told_after_the_end(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = create(ledger, events=tuple(EventName))
    record = taking.claim(ledger, job_id, "node", lease_s=30, max_attempts=3)
    assert record is not None

    ledger.fail(record, "internal_error", "It broke.")

    assert [delivery.event for delivery in take_due(deliveries, 9)] == ["failed"]
    assert [told.state for told in deliveries.of(job_id, "ant")] == [DeliveryState.DROPPED, DeliveryState.WAITING]


def test_a_retried_job_starts_anew(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = create(ledger, events=(EventName.STARTED,))
    record = taking.claim(ledger, job_id, "node", lease_s=30, max_attempts=3)
    assert record is not None
    ledger.fail(record, "internal_error", "It broke.")
    ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=10)
    taking.claim(ledger, job_id, "node", lease_s=30, max_attempts=3)

    assert [delivery.id for delivery in take_due(deliveries, 9)] == [f"msg_{job_id}_2_started"]
