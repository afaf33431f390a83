"""Batches on a real Redis: recorded as a whole or not at all, counted as their jobs move, reported once at the end."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, given, settings, strategies as st

from maskfleet.jobs.errors import InvalidRequest, QueueUnavailable
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.connection import load_script
from maskfleet.jobs.ledger.deliveries import Deliveries, Delivery
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import BacklogLimit, Created, Creation, Deleted, NewBatch, NewJobs, Retried
from maskfleet.jobs.schema.batch import BatchRecord
from maskfleet.jobs.schema.batch_spec import job_of, parse_batch
from maskfleet.jobs.schema.delivery import DeliveryState
from maskfleet.jobs.schema.record import JobRecord, Metrics, ResultSummary
from maskfleet.jobs.schema.spec import EventName, ImageSource, Webhook
from maskfleet.jobs.status import Status
from tests import taking
from tests.taking import take_due

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
QUEUE, URL = "sam.m.normal", "https://example.com/hook"
RESULT = ResultSummary(prefix="p/", manifest_key="p/m", masks=0, best_score=None, metrics=Metrics())
WEEK_MS = 7 * 86400 * 1000


@pytest.fixture
def batches(redis_client: redis.Redis) -> Batches:
    return Batches(redis_client)


def send(ledger: Ledger, jobs: int = 2, *, max_in_flight: int = 100, **fields: object) -> Creation:
    known = {"tenant": "ant", "queue": QUEUE, "specs_json": (SPEC,) * jobs, "start_deadline_s": 600}
    new = NewJobs(**{**known, "batch": NewBatch(URL), **fields})  # type: ignore[arg-type]  # a field's own type
    return ledger.create(new, max_in_flight=max_in_flight, idempotency_ttl_s=60)


def read(batches: Batches, sent: Creation) -> BatchRecord:
    record = batches.read(sent.id)
    assert record is not None
    return record


def claim(ledger: Ledger, job_id: str, lease_s: float = 600, max_attempts: int = 3) -> JobRecord:
    record = taking.claim(ledger, job_id, "node-1", lease_s=lease_s, max_attempts=max_attempts)
    assert record is not None
    return record


def counts(record: BatchRecord) -> dict[str, int]:
    return {name: count for name, count in record.counts.model_dump().items() if count}


def told(deliveries: Deliveries, sent: Creation) -> list[tuple[str, DeliveryState]]:
    return [(one.id, one.state) for one in deliveries.of(sent.id, "ant")]


def completion(sent: Creation, number: int = 1) -> str:
    return f"msg_{sent.id}_{number}_completed"


# Submitting.


def test_a_batch_and_all_its_jobs_are_recorded_in_the_order_of_its_images(
    ledger: Ledger, batches: Batches, redis_client: redis.Redis
) -> None:
    specs = tuple(SPEC.replace("00", f"{number:02}", 1) for number in range(50))

    sent = send(ledger, specs_json=specs, batch=NewBatch(URL, {"album": "蜂"}))

    record, jobs = read(batches, sent), [ledger.read(job_id) for job_id in sent.job_ids]
    assert (sent.outcome, batches.job_ids(sent.id)) == (Created.CREATED, sent.job_ids)
    assert (record.tenant, record.total, record.done, counts(record)) == ("ant", 50, 0, {"queued": 50})
    assert (record.metadata, record.ended_ms) == ({"album": "蜂"}, None)
    assert [(job.batch_id, job.status) for job in jobs if job] == [(sent.id, Status.QUEUED)] * 50
    assert [redis_client.hget(f"mf:job:{job_id}", "spec") for job_id in sent.job_ids] == list(specs)
    assert redis_client.zrange(f"mf:queued:{QUEUE}", 0, -1) == list(sent.job_ids)
    assert redis_client.zcard(f"mf:waiting:{QUEUE}:ant") == redis_client.scard("mf:inflight:ant") == 50
    assert redis_client.ttl(f"mf:batch:{sent.id}") == -1


def test_jobs_of_one_millisecond_are_each_on_one_page_of_the_list(ledger: Ledger) -> None:
    sent = send(ledger, 50)
    place, seen = None, []

    while page := ledger.page_of("ant", after=place, limit=7):
        seen += [record.id for record in page.records]
        place = page.next
        if place is None:
            break

    assert len(seen) == 50
    assert sorted(seen) == sorted(sent.job_ids)


def test_the_same_key_finds_the_batch_and_neither_a_job_nor_another_body(ledger: Ledger, batches: Batches) -> None:
    job = NewJobs("ant", QUEUE, (SPEC,), 600, None, "of a job", "digest")
    ledger.create(job, max_in_flight=100, idempotency_ttl_s=60)

    first = send(ledger, idempotency_key="k", body_digest="b1")
    again = send(ledger, idempotency_key="k", body_digest="b1")
    other = send(ledger, idempotency_key="k", body_digest="b2")
    of_a_job = send(ledger, idempotency_key="of a job", body_digest="b1")

    assert (again.outcome, again.id) == (Created.KNOWN, first.id)
    assert other.outcome is of_a_job.outcome is Created.KEY_REUSED
    assert read(batches, first).total == 2


def test_a_batch_over_the_quota_is_refused_whole(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.create(NewJobs("ant", QUEUE, (SPEC,), 600), max_in_flight=100, idempotency_ttl_s=60)
    before = set(redis_client.keys())

    refused = send(ledger, 3, max_in_flight=3)

    assert refused == Creation(Created.OVER_QUOTA)
    assert set(redis_client.keys()) == before
    assert send(ledger, 2, max_in_flight=3).outcome is Created.CREATED


def test_a_batch_whose_last_job_would_wait_too_long_is_refused_whole(ledger: Ledger, redis_client: redis.Redis) -> None:
    redis_client.hset("mf:totals", f"pace:{QUEUE}", 1000)
    limit = BacklogLimit(max_wait_s=2, workers=1, more_urgent=())
    four, three = (NewJobs("ant", QUEUE, (SPEC,) * jobs, 600, batch=NewBatch()) for jobs in (4, 3))

    refused = ledger.create(four, max_in_flight=100, idempotency_ttl_s=60, backlog=limit)
    taken = ledger.create(three, max_in_flight=100, idempotency_ttl_s=60, backlog=limit)

    assert (refused.outcome, refused.wait_s, taken.outcome) == (Created.BACKLOG_FULL, 3.0, Created.CREATED)
    assert redis_client.zcard(f"mf:queued:{QUEUE}") == 3


def test_a_redis_that_is_full_takes_nothing_of_a_batch(ledger: Ledger, redis_client: redis.Redis) -> None:
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(QueueUnavailable, match="full"):
            send(ledger, idempotency_key="k", body_digest="b")
    finally:
        redis_client.config_set("maxmemory", "0")

    assert redis_client.keys("mf:*") == []


def test_a_redis_that_fills_up_lets_a_batch_come_to_its_end(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    sent = send(ledger, 1)
    redis_client.config_set("maxmemory", "1")
    try:
        ledger.succeed(claim(ledger, sent.job_ids[0]), RESULT)
    finally:
        redis_client.config_set("maxmemory", "0")

    assert told(deliveries, sent) == [(completion(sent), DeliveryState.WAITING)]


def test_the_same_call_twice_makes_one_batch(batches: Batches, redis_client: redis.Redis) -> None:
    script = load_script(redis_client, "create")
    nothing = dict.fromkeys(("webhook_url", "webhook_events", "idempotency_key", "body_digest"), "")
    numbers = dict.fromkeys(("start_deadline_ms", "idempotency_ttl_ms", "publish_grace_ms", "max_backlog_ms"), 0)
    limits = {"schema": 1, "max_in_flight": 2, "max_bytes": 10_000, "workers": 0, "more_urgent": [], "summary": "{}"}
    batch = {"id": "batch_1", "metadata": "{}", "completed_url": ""}
    new = {"tenant": "ant", "queue": QUEUE, "batch": batch, "images": [], **nothing, **numbers, **limits}
    arguments = [json.dumps(new), "job_1", SPEC, "job_2", SPEC]

    first, again = script(args=arguments), script(args=arguments)

    assert first == again == ["created", "batch_1", ""]
    assert redis_client.zcard(f"mf:queued:{QUEUE}") == 2
    assert batches.job_ids("batch_1") == ("job_1", "job_2")


# Ending.


def succeeds(ledger: Ledger, job_id: str, _: redis.Redis) -> None:
    ledger.succeed(claim(ledger, job_id), RESULT)


def fails(ledger: Ledger, job_id: str, _: redis.Redis) -> None:
    ledger.fail(claim(ledger, job_id), "image_corrupt", "It is damaged.")


def is_canceled_queued(ledger: Ledger, job_id: str, _: redis.Redis) -> None:
    ledger.cancel(job_id, "ant")


def is_canceled_running(ledger: Ledger, job_id: str, _: redis.Redis) -> None:
    record = claim(ledger, job_id)
    ledger.cancel(job_id, "ant")
    ledger.finish_canceled(record)


def is_canceled_and_reaped(ledger: Ledger, job_id: str, _: redis.Redis) -> None:
    claim(ledger, job_id, lease_s=0)
    ledger.cancel(job_id, "ant")
    assert ledger.reap(max_attempts=3).canceled == 1


def breaks_off_too_often(ledger: Ledger, job_id: str, _: redis.Redis) -> None:
    claim(ledger, job_id, lease_s=0)
    assert ledger.reap(max_attempts=1).failed == 1


def is_claimed_too_often(ledger: Ledger, job_id: str, _: redis.Redis) -> None:
    ledger.release(claim(ledger, job_id), delay_s=0, charged=True)
    assert taking.claim(ledger, job_id, "node-1", lease_s=600, max_attempts=1) is None


def expires(ledger: Ledger, job_id: str, client: redis.Redis) -> None:
    client.zadd("mf:deadlines", {job_id: 0})
    assert ledger.reap(max_attempts=3).expired == 1


def is_claimed_too_late(ledger: Ledger, job_id: str, client: redis.Redis) -> None:
    client.zadd("mf:deadlines", {job_id: 0})
    client.hset(f"mf:job:{job_id}", "start_by_ms", 0)
    assert taking.claim(ledger, job_id, "node-1", lease_s=600, max_attempts=3) is None


WAYS: dict[Callable[[Ledger, str, redis.Redis], None], str] = {
    succeeds: "succeeded",
    fails: "failed",
    is_canceled_queued: "canceled",
    is_canceled_running: "canceled",
    is_canceled_and_reaped: "canceled",
    breaks_off_too_often: "failed",
    is_claimed_too_often: "failed",
    expires: "expired",
    is_claimed_too_late: "expired",
}


@pytest.mark.parametrize("end", WAYS, ids=lambda way: way.__name__)
def test_whichever_way_the_last_job_ends_the_batch_is_told_of_once(
    end: Callable[[Ledger, str, redis.Redis], None],
    ledger: Ledger,
    batches: Batches,
    deliveries: Deliveries,
    redis_client: redis.Redis,
) -> None:
    sent = send(ledger)
    succeeds(ledger, sent.job_ids[0], redis_client)
    before = (told(deliveries, sent), read(batches, sent).ended_ms)

    end(ledger, sent.job_ids[1], redis_client)

    record = read(batches, sent)
    assert before == ([], None)
    assert told(deliveries, sent) == [(completion(sent), DeliveryState.WAITING)]
    assert record.completion_id == completion(sent)
    assert record.ended_ms is not None
    assert counts(record) == Counter(["succeeded", WAYS[end]])
    [due] = take_due(deliveries)
    assert (due.subject, due.event, due.url, due.tenant) == (sent.id, "completed", URL, "ant")


def test_a_completion_is_shown_as_the_batches_own(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    sent = send(ledger, 1)
    succeeds(ledger, sent.job_ids[0], redis_client)

    view = deliveries.of(sent.id, "ant")[0].view()

    assert (view.type, view.batch_id, view.job_id) == ("batch.completed", sent.id, None)
    assert deliveries.of(sent.id, "bee") == deliveries.of(sent.job_ids[0], "ant") == []


def test_without_a_webhook_a_batch_ends_untold(
    ledger: Ledger, batches: Batches, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    sent = send(ledger, 1, batch=NewBatch())

    succeeds(ledger, sent.job_ids[0], redis_client)

    assert (read(batches, sent).done, take_due(deliveries)) == (1, [])


def test_of_each_job_is_told_what_was_asked_for(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    sent = send(ledger, 2, webhook=Webhook(url=URL, events=(EventName.FAILED,)))

    succeeds(ledger, sent.job_ids[0], redis_client)
    fails(ledger, sent.job_ids[1], redis_client)

    assert {(one.subject, one.event) for one in take_due(deliveries)} == {
        (sent.job_ids[1], "failed"),
        (sent.id, "completed"),
    }


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_end_the_last_jobs_at_once_complete_the_batch_once(
    workers: int, ledger: Ledger, batches: Batches, deliveries: Deliveries
) -> None:
    for _ in range(10):
        sent = send(ledger, workers)
        records = [claim(ledger, job_id) for job_id in sent.job_ids]
        together = threading.Barrier(workers)

        def end(record: JobRecord, together: threading.Barrier = together) -> None:
            together.wait(30)
            ledger.succeed(record, RESULT)
            ledger.succeed(record, RESULT)  # the same call again, as after a lost reply

        threads = [threading.Thread(target=end, args=(record,)) for record in records]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert told(deliveries, sent) == [(completion(sent), DeliveryState.WAITING)]
        assert (read(batches, sent).ends, counts(read(batches, sent))) == (1, {"succeeded": workers})


STEPS = ("claim", "succeed", "fail", "release", "cancel", "lose", "expire", "retry", "delete")
#: Transitions into and out of an ended state are drawn more often.
OFTEN = ("claim", "claim", "fail", "fail", "retry", "retry", *STEPS)


@given(steps=st.lists(st.tuples(st.sampled_from(OFTEN), st.integers(0, 1)), min_size=10, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_any_order_the_counts_are_those_of_the_jobs(
    steps: list[tuple[str, int]], ledger: Ledger, batches: Batches, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    redis_client.flushall()
    sent = send(ledger, 2)
    held: dict[str, JobRecord] = {}
    last = dict.fromkeys(sent.job_ids, "queued")
    completions, was_open = 0, True

    for step, place in steps:
        job_id = sent.job_ids[place]
        _take(step, job_id, held, ledger, redis_client)
        for one in sent.job_ids:
            status = ledger.status(one)
            last[one] = str(status) if status else last[one]  # a deleted one stays counted
        is_open = bool({"queued", "processing"} & set(last.values()))
        completions += was_open and not is_open
        was_open = is_open

        record = read(batches, sent)
        assert counts(record) == Counter(last.values())
        assert (record.ends, record.ended_ms is None) == (completions, is_open)
        assert (redis_client.pttl(f"mf:batch:{sent.id}") == -1) == is_open
        assert (redis_client.pttl(f"mf:batch_jobs:{sent.id}") == -1) == is_open
        expected = [DeliveryState.DROPPED] * completions
        if not is_open:
            expected[-1] = DeliveryState.WAITING
        assert told(deliveries, sent) == [(completion(sent, n + 1), state) for n, state in enumerate(expected)]


def _take(step: str, job_id: str, held: dict[str, JobRecord], ledger: Ledger, client: redis.Redis) -> None:
    record = held.get(job_id)
    if step == "claim":
        claimed = ledger.claim_next((QUEUE,), "node-1", lease_s=600, max_attempts=2).record
        held.update({claimed.id: claimed} if claimed else {})
    elif step == "succeed" and record:
        ledger.succeed(record, RESULT)
    elif step == "fail" and record:
        ledger.fail(record, "internal_error", "It broke.")
    elif step == "release" and record:
        ledger.release(record, delay_s=0, charged=False)
    elif step == "cancel":
        ledger.cancel(job_id, "ant")
    elif step == "lose":
        client.zadd("mf:leases", {job_id: 0}, xx=True)
        ledger.reap(max_attempts=2)
    elif step == "expire":
        client.zadd("mf:deadlines", {job_id: 0}, xx=True)
        ledger.reap(max_attempts=2)
    elif step == "retry":
        ledger.retry(job_id, "ant", start_deadline_s=600, max_in_flight=100)
    elif step == "delete":
        ledger.delete(job_id, "ant")


# Afterwards.


def deliver(deliveries: Deliveries) -> Delivery:
    [due] = take_due(deliveries)
    deliveries.keep_body(due, '{"kept": true}')
    deliveries.ended(due, DeliveryState.DELIVERED)
    return due


def retry(ledger: Ledger, job_id: str) -> None:
    assert ledger.retry(job_id, "ant", start_deadline_s=600, max_in_flight=100) is Retried.QUEUED


def test_a_job_that_is_retried_opens_the_batch_and_its_next_end_is_told_under_another_id(
    ledger: Ledger, batches: Batches, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    sent = send(ledger)
    succeeds(ledger, sent.job_ids[0], redis_client)
    fails(ledger, sent.job_ids[1], redis_client)
    first = deliver(deliveries)

    retry(ledger, sent.job_ids[1])
    opened = read(batches, sent)
    succeeds(ledger, sent.job_ids[1], redis_client)
    second = deliver(deliveries)

    assert (opened.ended_ms, counts(opened)) == (None, {"succeeded": 1, "queued": 1})
    assert [first.id, second.id] == [completion(sent, 1), completion(sent, 2)]
    assert counts(read(batches, sent)) == {"succeeded": 2}


def test_a_completion_that_was_not_told_before_the_retry_is_dropped(
    ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    sent = send(ledger, 1)
    fails(ledger, sent.job_ids[0], redis_client)

    retry(ledger, sent.job_ids[0])

    [dropped] = deliveries.of(sent.id, "ant")
    assert (dropped.state, dropped.detail) == (
        DeliveryState.DROPPED,
        "A job of the batch was retried before this was sent.",
    )
    assert take_due(deliveries) == []
    assert redis_client.ttl(f"mf:batch:{sent.id}") == -1


def test_a_job_that_is_deleted_stays_counted(
    ledger: Ledger, batches: Batches, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    sent = send(ledger)
    succeeds(ledger, sent.job_ids[0], redis_client)

    assert ledger.delete(sent.job_ids[0], "ant") is Deleted.DELETED
    fails(ledger, sent.job_ids[1], redis_client)

    assert counts(read(batches, sent)) == {"succeeded": 1, "failed": 1}
    assert batches.job_ids(sent.id) == sent.job_ids
    assert told(deliveries, sent) == [(completion(sent), DeliveryState.WAITING)]


def test_a_batch_is_kept_until_it_was_told_of_and_then_for_its_retention(redis_client: redis.Redis) -> None:
    ledger = Ledger(redis_client, retention_s=60)
    sent = send(ledger, 1)

    succeeds(ledger, sent.job_ids[0], redis_client)
    untold_ms = redis_client.pttl(f"mf:batch:{sent.id}")
    [due] = take_due(Deliveries(redis_client, retention_s=60))
    Deliveries(redis_client, retention_s=60).keep_body(due, "{}")
    told_ms = redis_client.pttl(f"mf:batch:{sent.id}")

    assert 60_000 < untold_ms <= WEEK_MS
    assert 0 < told_ms <= 60_000
    assert 0 < redis_client.pttl(f"mf:batch_jobs:{sent.id}") <= 60_000


def test_a_job_that_outlives_its_batch_is_retried_alone(
    ledger: Ledger, batches: Batches, redis_client: redis.Redis
) -> None:
    sent = send(ledger, 1)
    fails(ledger, sent.job_ids[0], redis_client)
    redis_client.delete(f"mf:batch:{sent.id}")

    retry(ledger, sent.job_ids[0])
    succeeds(ledger, sent.job_ids[0], redis_client)

    assert ledger.status(sent.job_ids[0]) is Status.SUCCEEDED
    assert batches.read(sent.id) is None


# Queries.


def test_the_job_of_an_image_is_the_batch_with_that_image() -> None:
    body = b"""{"mode": "box", "images": [{"s3_uri": "s3://photos/bee.jpg"}], "prompts": [{"box": [1, 2, 3, 4]}],
        "outputs": ["png"], "params": {"multimask": true}, "priority": "bulk", "metadata": {"a": "b"},
        "webhook": {"url": "https://example.com/hook", "events": ["completed", "failed"]}}"""
    batch = parse_batch(body)
    image = ImageSource(upload_id="upl_" + "1" * 32)

    job = job_of(batch, image)

    shared = batch.model_dump(exclude={"images", "source", "webhook"})
    assert job.model_dump(exclude={"image", "inline", "webhook"}) == shared
    assert job.image == image
    assert job.webhook == Webhook(url="https://example.com/hook", events=(EventName.FAILED,))
    assert type(job).model_validate_json(job.model_dump_json(), strict=True) == job


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ('"images": []', "/images"),
        ('"images": [{"url": "https://a.com/"}, {}]', "/images/1"),
        ('"images": [{"url": "https://a.com/"}, {"upload_id": "bee"}]', "/images/1/upload_id"),
        ('"images": [{"url": "https://a.com/"}], "image": {"url": "https://a.com/"}', "/image"),
        (
            '"images": [{"url": "https://a.com/"}], "webhook": {"url": "https://a.com/", "events": ["ended"]}',
            "/webhook",
        ),
    ],
)
def test_what_is_wrong_with_a_batch_is_said_with_its_place(wrong: str, pointer: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_batch(f'{{"mode": "everything", {wrong}}}'.encode())

    assert refusal.value.code == "invalid_spec"
    assert refusal.value.faults[0].pointer.startswith(pointer)
    assert refusal.value.detail.startswith(pointer)
