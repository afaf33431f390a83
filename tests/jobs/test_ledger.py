"""The ledger on a real Redis: every transition, and who may not make it."""

import pytest
import redis

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import load_script
from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import RESERVED_MS, Ledger
from maskfleet.jobs.ledger.outcomes import (
    Cancel,
    Claim,
    Created,
    Creation,
    Deleted,
    NewImages,
    NewJobs,
    Reply,
    Reservation,
    Retried,
)
from maskfleet.jobs.ledger.places import QueuePlaces
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.record import JobRecord, Metrics, ProgressView, QueuePlace, ResultSummary
from maskfleet.jobs.schema.spec import EventName, Webhook
from maskfleet.jobs.status import Stage, Status
from tests import taking
from tests.taking import take_due
from tests.waiting import wait_until

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"metadata":{"order":"42"}}'
QUEUE = "sam.m.normal"
RESULT = ResultSummary(prefix="p/", manifest_key="p/manifest.json", masks=3, best_score=0.9, metrics=Metrics())
PROGRESS = ProgressView(stage=Stage.DECODING, done=1, total=4, masks=2)


def create(ledger: Ledger, tenant: str = "ant", *, quota: int = 100, **fields: object) -> str:
    creation = ledger.create(new_job(tenant, **fields), max_in_flight=quota, idempotency_ttl_s=60)
    assert creation.outcome is Created.CREATED
    return creation.id


def new_job(tenant: str = "ant", **fields: object) -> NewJobs:
    return NewJobs(
        **{"tenant": tenant, "queue": "sam.m.normal", "specs_json": (SPEC,), "start_deadline_s": 60, **fields}
    )


def claim(ledger: Ledger, job_id: str, *, lease_s: float = 30, max_attempts: int = 3) -> JobRecord:
    record = taking.claim(ledger, job_id, lease_s=lease_s, max_attempts=max_attempts)
    assert record is not None
    return record


def next_of(ledger: Ledger, *queues: str, worker: str = "node-1", max_attempts: int = 3) -> Claim:
    return ledger.claim_next(queues or (QUEUE,), worker, lease_s=30, max_attempts=max_attempts)


def read(ledger: Ledger, job_id: str) -> JobRecord:
    record = ledger.read(job_id)
    assert record is not None
    return record


@pytest.fixture
def places(redis_client: redis.Redis) -> QueuePlaces:
    return QueuePlaces(redis_client)


def ahead(places: QueuePlaces, record: JobRecord) -> int | None:
    place = places.of(record, workers=0)
    return place.ahead if place else None


def test_a_created_job_is_queued_with_its_spec_and_its_place(ledger: Ledger, places: QueuePlaces) -> None:
    first = create(ledger)
    second = create(ledger)

    record = read(ledger, second)
    assert (record.status, record.tenant, record.summary.metadata) == (Status.QUEUED, "ant", {"order": "42"})
    assert [ahead(places, read(ledger, job)) for job in (first, second)] == [0, 1]


def test_an_idempotency_key_stands_for_one_job(ledger: Ledger) -> None:
    job = new_job(idempotency_key="k", body_digest="d")
    first = ledger.create(job, max_in_flight=9, idempotency_ttl_s=60)

    again = ledger.create(job, max_in_flight=9, idempotency_ttl_s=60)
    other = ledger.create(new_job(idempotency_key="k", body_digest="e"), max_in_flight=9, idempotency_ttl_s=60)
    stranger = ledger.create(
        new_job("bee", idempotency_key="k", body_digest="d"), max_in_flight=9, idempotency_ttl_s=60
    )

    assert (again.outcome, again.id) == (Created.KNOWN, first.id)
    assert other.outcome is Created.KEY_REUSED
    assert stranger.outcome is Created.CREATED
    assert len(ledger.page_of("ant", limit=10).records) == 1


def test_a_tenant_over_its_quota_is_refused_until_a_job_ends(ledger: Ledger) -> None:
    job_id = create(ledger, quota=1)
    refused = ledger.create(new_job(), max_in_flight=1, idempotency_ttl_s=60)

    ledger.cancel(job_id, "ant")

    assert refused.outcome is Created.OVER_QUOTA
    create(ledger, quota=1)


def test_a_claimed_job_is_held_by_one_worker(ledger: Ledger, places: QueuePlaces) -> None:
    job_id = create(ledger)

    record = claim(ledger, job_id)

    assert (record.status, record.attempt, record.worker) == (Status.PROCESSING, 1, "node-1")
    assert next_of(ledger, worker="node-2") == Claim(None)
    assert ahead(places, record) is None


def test_a_beat_shows_progress(ledger: Ledger) -> None:
    record = claim(ledger, create(ledger))

    reply = ledger.beat(record, PROGRESS, lease_s=30)

    assert reply is Reply.OK
    assert read(ledger, record.id).progress == PROGRESS


def test_a_finished_job_never_changes(ledger: Ledger) -> None:
    record = claim(ledger, create(ledger))
    assert ledger.succeed(record, RESULT) is Reply.OK

    late = [ledger.beat(record, PROGRESS, lease_s=30), ledger.fail(record, "x", "y"), ledger.finish_canceled(record)]
    canceled = ledger.cancel(record.id, "ant")

    ended = read(ledger, record.id)
    assert late == [Reply.FENCED] * 3
    assert canceled is Cancel.ENDED
    assert (ended.status, ended.result, ended.error, ended.progress) == (Status.SUCCEEDED, RESULT, None, None)
    assert next_of(ledger, worker="node-2") == Claim(None)


def test_a_worker_whose_lease_ran_out_is_fenced(ledger: Ledger) -> None:
    frozen = claim(ledger, create(ledger), lease_s=0.01)
    wait_until(lambda: ledger.reap(max_attempts=3).requeued == 1)

    successor = claim(ledger, frozen.id)

    assert ledger.succeed(frozen, RESULT) is Reply.FENCED
    assert ledger.release(frozen, delay_s=0, charged=True) is Reply.FENCED
    assert (successor.attempt, successor.fence > frozen.fence) == (2, True)
    assert ledger.succeed(successor, RESULT) is Reply.OK


def test_a_lease_that_is_beaten_is_not_reaped(ledger: Ledger) -> None:
    record = claim(ledger, create(ledger), lease_s=0.01)
    ledger.beat(record, PROGRESS, lease_s=30)

    assert ledger.reap(max_attempts=3).requeued == 0
    assert ledger.succeed(record, RESULT) is Reply.OK


def test_a_job_that_kills_its_workers_fails_at_its_cap(ledger: Ledger) -> None:
    job_id = create(ledger)
    for _ in range(2):
        claim(ledger, job_id, lease_s=0.01, max_attempts=2)
        wait_until(lambda: sum((r := ledger.reap(max_attempts=2), r.requeued + r.failed)[1:]) == 1)

    record = read(ledger, job_id)

    assert record.status is Status.FAILED
    assert record.error is not None
    assert record.error.code == "attempts_exhausted"


def test_a_queued_job_is_canceled_at_once(ledger: Ledger) -> None:
    job_id = create(ledger)

    assert ledger.cancel(job_id, "ant") is Cancel.CANCELED
    assert ledger.status(job_id) is Status.CANCELED
    assert next_of(ledger) == Claim(None)


def test_a_running_job_learns_of_its_cancellation_by_the_beat(ledger: Ledger) -> None:
    record = claim(ledger, create(ledger))

    assert ledger.cancel(record.id, "ant") is Cancel.REQUESTED
    assert ledger.beat(record, PROGRESS, lease_s=30) is Reply.CANCELED
    assert ledger.finish_canceled(record) is Reply.OK
    assert ledger.status(record.id) is Status.CANCELED


def test_a_canceled_job_whose_worker_died_is_canceled_by_the_reaper(ledger: Ledger) -> None:
    record = claim(ledger, create(ledger), lease_s=0.01)
    ledger.cancel(record.id, "ant")

    wait_until(lambda: ledger.reap(max_attempts=3).canceled == 1)

    assert ledger.status(record.id) is Status.CANCELED


def test_another_tenants_job_cannot_be_canceled(ledger: Ledger) -> None:
    job_id = create(ledger)

    assert ledger.cancel(job_id, "bee") is Cancel.UNKNOWN
    assert ledger.status(job_id) is Status.QUEUED


def test_a_job_that_waits_past_its_deadline_expires(ledger: Ledger) -> None:
    met = create(ledger, start_deadline_s=0)
    refused = next_of(ledger)
    reaped = create(ledger, start_deadline_s=0)

    wait_until(lambda: ledger.reap(max_attempts=3).expired == 1)

    assert refused == Claim(None)
    assert [ledger.status(job) for job in (met, reaped)] == [Status.EXPIRED] * 2


def test_a_job_that_was_handed_back_is_claimed_first_once_its_delay_has_passed(
    ledger: Ledger, places: QueuePlaces, redis_client: redis.Redis
) -> None:
    record = claim(ledger, create(ledger))
    other = create(ledger)

    assert ledger.release(record, delay_s=60, charged=False) is Reply.OK

    assert ahead(places, read(ledger, other)) == 0
    assert ledger.silent_queues() == {QUEUE: 1}
    redis_client.zadd(f"mf:returned:{QUEUE}", {record.id: 1}, xx=True)  # as if the minute had passed
    assert ahead(places, read(ledger, record.id)) == 0
    assert ahead(places, read(ledger, other)) == 1
    assert ledger.silent_queues() == {QUEUE: 2}
    assert claim(ledger, record.id).attempt == 1


def test_a_job_whose_delay_has_not_passed_is_not_claimed(ledger: Ledger, places: QueuePlaces) -> None:
    ledger.succeed(claim(ledger, create(ledger)), RESULT)  # so that the pace is known
    record = claim(ledger, create(ledger))
    ledger.release(record, delay_s=60, charged=True)

    place = places.of(read(ledger, record.id), workers=1)

    assert next_of(ledger) == Claim(None)
    assert ledger.silent_queues() == {}
    assert place is not None
    assert (place.ahead, place.starts_in_s) == (0, pytest.approx(60, abs=5))


@pytest.mark.parametrize("way", ["release", "reap"])
def test_a_cancellation_outlives_the_attempt_that_was_to_see_it(
    ledger: Ledger, way: str, redis_client: redis.Redis
) -> None:
    record = claim(ledger, create(ledger), lease_s=600)
    assert ledger.cancel(record.id, "ant") is Cancel.REQUESTED

    if way == "release":
        assert ledger.release(record, delay_s=300, charged=False, outcome="drained") is Reply.CANCELED
    else:
        redis_client.zadd("mf:leases", {record.id: 1}, xx=True)  # as if its lease had run out
        assert ledger.reap(max_attempts=3).canceled == 1

    assert ledger.status(record.id) is Status.CANCELED
    assert [attempt.outcome for attempt in ledger.attempts(record.id)] == ["canceled"]
    assert next_of(ledger) == Claim(None)
    assert redis_client.exists(f"mf:queued:{QUEUE}", "mf:inflight:ant", "mf:leases") == 0


def test_a_waiting_job_that_is_to_be_canceled_is_not_claimed(ledger: Ledger, redis_client: redis.Redis) -> None:
    job_id, other = create(ledger), create(ledger)
    redis_client.hset(f"mf:job:{job_id}", "cancel", 1)  # as version 1 left it after a release

    assert (found := next_of(ledger).record) is not None
    assert found.id == other
    assert ledger.status(job_id) is Status.CANCELED


def test_a_worker_that_shuts_down_claims_nothing_more(ledger: Ledger) -> None:
    job_id = create(ledger)
    ledger.drain("node-1", grace_s=60)

    assert next_of(ledger) == Claim(None)
    assert next_of(ledger, worker="node-2").record is not None
    assert ledger.status(job_id) is Status.PROCESSING


def test_the_more_urgent_queue_is_drained_first(ledger: Ledger) -> None:
    queues = tuple(f"sam.m.{urgency}" for urgency in ("interactive", "normal", "bulk"))
    jobs = [create(ledger, queue=queue) for queue in reversed(queues)]

    claims = [next_of(ledger, *queues) for _ in range(4)]

    assert [one.record.id for one in claims if one.record] == jobs[::-1]
    assert [(one.more_in, one.more) for one in claims] == [(queues[1], 1), (queues[2], 1), ("", 0), ("", 0)]


def test_many_jobs_that_can_no_longer_be_claimed_are_ended_on_the_way(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    for _ in range(120):
        create(ledger, start_deadline_s=0, quota=1000)
    last = create(ledger, quota=1000)

    assert (found := next_of(ledger).record) is not None
    assert found.id == last
    assert JobCounts(redis_client).totals()["expired"] == 120


def test_a_job_whose_record_is_gone_leaves_all_lists_when_its_turn_comes(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    gone, other = create(ledger), create(ledger)
    redis_client.delete(f"mf:job:{gone}")

    assert (found := next_of(ledger).record) is not None
    assert found.id == other
    lists = (f"mf:queued:{QUEUE}", f"mf:waiting:{QUEUE}:ant", "mf:deadlines")
    assert [key for key in lists if redis_client.zscore(key, gone) is not None] == []
    assert redis_client.smembers("mf:inflight:ant") == {other}


def test_the_courier_learns_where_jobs_wait_and_no_bell_lies(ledger: Ledger, redis_client: redis.Redis) -> None:
    for queue in (QUEUE, QUEUE, "sam.m.bulk"):
        create(ledger, queue=queue)
    redis_client.lpush("sam.m.bulk", "a bell")

    assert ledger.silent_queues() == {QUEUE: 2}
    redis_client.rpop("sam.m.bulk")
    assert ledger.silent_queues() == {QUEUE: 2, "sam.m.bulk": 1}
    assert JobCounts(redis_client).totals()["rung"] == 3
    for _ in range(3):
        next_of(ledger, QUEUE, "sam.m.bulk")
    assert ledger.silent_queues() == {}
    assert redis_client.exists("mf:queues") == 0


@pytest.mark.parametrize("events", [(EventName.SUCCEEDED,), tuple(EventName)])
def test_the_end_of_a_job_queues_its_webhook(
    ledger: Ledger, events: tuple[EventName, ...], deliveries: Deliveries
) -> None:
    webhook = Webhook(url="https://example.com/hook", events=events)
    record = claim(ledger, create(ledger, webhook=webhook))

    ledger.succeed(record, RESULT)

    [delivery] = take_due(deliveries)
    assert delivery.id == f"msg_{record.id}_1_succeeded"
    assert (delivery.subject, delivery.event, delivery.attempts_since_queued) == (record.id, EventName.SUCCEEDED, 1)
    assert delivery.url == "https://example.com/hook"
    assert take_due(deliveries) == []  # it is taken


def test_an_end_that_was_not_asked_for_queues_no_webhook(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = create(ledger, webhook=Webhook(url="https://example.com/hook", events=(EventName.SUCCEEDED,)))

    ledger.cancel(job_id, "ant")

    assert deliveries.waiting() == 0


def test_a_postponed_webhook_comes_again_and_a_delivered_one_does_not(ledger: Ledger, deliveries: Deliveries) -> None:
    ledger.cancel(create(ledger, webhook=Webhook(url="https://example.com/hook")), "ant")
    [delivery] = take_due(deliveries)

    deliveries.postponed(delivery, 0)
    again = wait_until(lambda: take_due(deliveries))
    deliveries.ended(again[0], "delivered")

    assert [found.attempts_since_queued for found in again] == [2]
    assert deliveries.waiting() == 0


def test_jobs_are_listed_newest_first_page_by_page(ledger: Ledger) -> None:
    created = [create(ledger) for _ in range(7)]
    create(ledger, "bee")

    first = ledger.page_of("ant", limit=3)
    second = ledger.page_of("ant", after=first.next, limit=3)
    third = ledger.page_of("ant", after=second.next, limit=3)

    pages = [[record.id for record in page.records] for page in (first, second, third)]
    assert third.next is None
    assert sorted(job for page in pages for job in page) == sorted(created)
    assert [len(page) for page in pages] == [3, 3, 1]


def test_forgotten_jobs_leave_the_tenants_list(ledger: Ledger, redis_client: redis.Redis) -> None:
    forgotten = create(ledger)
    redis_client.delete(f"mf:job:{forgotten}")

    page = ledger.page_of("ant", limit=1)

    assert (page.records, page.next) == ((), None)
    assert redis_client.zscore("mf:jobs:ant", forgotten) is None


def test_ended_jobs_expire_and_leave_nothing_in_the_queues(ledger: Ledger, redis_client: redis.Redis) -> None:
    job_id = create(ledger)
    ledger.cancel(job_id, "ant")

    assert next_of(ledger) == Claim(None)  # the bell that was rung for it
    assert ledger.silent_queues() == {}
    assert redis_client.ttl(f"mf:job:{job_id}") > 0
    assert sorted(redis_client.keys("mf:*")) == sorted(
        [f"mf:job:{job_id}", "mf:jobs:ant", "mf:bytes:ant", "mf:tenants", "mf:schema", "mf:totals"]
    )


def test_workers_that_announce_themselves_are_seen(ledger: Ledger, worker_registry: WorkerRegistry) -> None:
    seen = WorkerSeen("sam-gpu0@host", "sam-demo", "cpu", 12, 3)

    worker_registry.announce(seen)
    assert worker_registry.workers() == [seen]

    worker_registry.withdraw("sam-gpu0@host")
    assert worker_registry.workers() == []


def test_a_redis_that_is_gone_is_told_as_such() -> None:
    gone = Ledger(redis.Redis(port=1, decode_responses=True), retention_s=60)

    with pytest.raises(QueueUnavailable):
        gone.read("job_x")


def test_a_redis_that_is_full_refuses_and_writes_nothing(ledger: Ledger, redis_client: redis.Redis) -> None:
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(QueueUnavailable, match="full"):
            create(ledger)
    finally:
        redis_client.config_set("maxmemory", "0")

    assert redis_client.keys("mf:*") == []


def test_every_attempt_is_remembered_with_how_it_ended(ledger: Ledger) -> None:
    job_id = create(ledger)
    claim(ledger, job_id, lease_s=0.01)
    wait_until(lambda: ledger.reap(max_attempts=3).requeued == 1)
    ledger.release(claim(ledger, job_id), delay_s=0, charged=True, outcome="store_unavailable")
    ledger.succeed(claim(ledger, job_id), RESULT)

    attempts = ledger.attempts(job_id)

    assert [(attempt.number, attempt.outcome) for attempt in attempts] == [
        (1, "lease_ran_out"),
        (2, "store_unavailable"),
        (3, "succeeded"),
    ]
    assert all(attempt.ended_at and attempt.ended_at >= attempt.started_at for attempt in attempts)


def test_who_is_fenced_is_counted(ledger: Ledger, redis_client: redis.Redis) -> None:
    record = claim(ledger, create(ledger))
    ledger.release(record, delay_s=0, charged=True)

    ledger.beat(record, PROGRESS, lease_s=30)
    ledger.succeed(record, RESULT)

    assert JobCounts(redis_client).totals()["fenced"] == 2


def test_an_end_that_is_told_twice_is_one_end(ledger: Ledger, deliveries: Deliveries) -> None:
    record = claim(ledger, create(ledger, webhook=Webhook(url="https://example.com/hook")))

    assert [ledger.succeed(record, RESULT) for _ in range(2)] == [Reply.OK] * 2

    assert len(take_due(deliveries)) == 1


def test_a_node_that_drains_hands_its_job_back_after_the_grace(ledger: Ledger) -> None:
    record = claim(ledger, create(ledger))
    ledger.drain("node-1", grace_s=60)
    within = ledger.beat(record, PROGRESS, lease_s=30)
    ledger.drain("node-1", grace_s=0)
    after = wait_until(lambda: (reply := ledger.beat(record, PROGRESS, lease_s=30)) is not Reply.OK and reply)
    ledger.undrain("node-1")

    assert (within, after) == (Reply.OK, Reply.DRAINED)
    assert ledger.beat(record, PROGRESS, lease_s=30) is Reply.OK


def test_a_failed_job_is_retried_with_all_its_attempts_before_it(ledger: Ledger, redis_client: redis.Redis) -> None:
    job_id = create(ledger)
    ledger.fail(claim(ledger, job_id, max_attempts=1), "store_unavailable", "Gone.")

    assert ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=10) is Retried.QUEUED

    record = read(ledger, job_id)
    assert (record.status, record.error, record.ended_ms) == (Status.QUEUED, None, None)
    assert redis_client.ttl(f"mf:job:{job_id}") == -1
    assert ledger.silent_queues() == {QUEUE: 1}
    assert claim(ledger, job_id, max_attempts=1).attempt == 1


def test_only_a_failed_job_of_ones_own_is_retried(ledger: Ledger) -> None:
    failed, running = create(ledger), create(ledger)
    ledger.fail(claim(ledger, failed), "x", "y")
    claim(ledger, running)

    def retry(job_id: str, tenant: str, quota: int = 10) -> Retried:
        return ledger.retry(job_id, tenant, start_deadline_s=60, max_in_flight=quota)

    assert retry(running, "ant") is Retried.NOT_FAILED
    assert retry(failed, "bee") is Retried.UNKNOWN
    assert retry(failed, "ant", quota=1) is Retried.OVER_QUOTA


def test_the_ends_of_a_retried_job_are_told_apart(ledger: Ledger, deliveries: Deliveries) -> None:
    job_id = create(ledger, webhook=Webhook(url="https://example.com/hook"))
    for _ in range(2):
        ledger.fail(claim(ledger, job_id), "x", "y")
        ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=10)

    assert {delivery.id for delivery in take_due(deliveries)} == {f"msg_{job_id}_{end}_failed" for end in (1, 2)}


def test_an_ended_job_of_ones_own_is_forgotten(ledger: Ledger, redis_client: redis.Redis) -> None:
    job_id = create(ledger)
    assert ledger.delete(job_id, "ant") is Deleted.NOT_ENDED
    ledger.fail(claim(ledger, job_id), "x", "y")
    assert ledger.delete(job_id, "bee") is Deleted.UNKNOWN

    assert ledger.delete(job_id, "ant") is Deleted.DELETED

    assert ledger.read(job_id) is None
    assert [key for key in redis_client.keys("mf:*") if job_id in key] == []
    assert ledger.page_of("ant", limit=10).records == ()


def test_the_start_is_estimated_from_the_queues_pace(
    ledger: Ledger, places: QueuePlaces, redis_client: redis.Redis
) -> None:
    ledger.succeed(claim(ledger, create(ledger)), RESULT)
    redis_client.hset("mf:totals", "pace:sam.m.normal", 2000)  # as if that job had taken 2 s
    create(ledger, queue="sam.m.interactive")
    create(ledger)
    last = read(ledger, create(ledger))

    with_two = places.of(last, workers=2)
    with_none = places.of(last, workers=0)

    assert with_two == QueuePlace(ahead=1, starts_in_s=2.0)  # one ahead of it, one more urgent, two at a time
    assert with_none == QueuePlace(ahead=1, starts_in_s=None)


def test_the_pace_is_measured(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.succeed(claim(ledger, create(ledger)), RESULT)

    assert redis_client.hget("mf:totals", "pace:sam.m.normal") is not None


def test_a_watcher_sees_a_new_version_with_each_change_and_only_then(ledger: Ledger) -> None:
    job_id = create(ledger)
    seen = [ledger.version(job_id)]
    record = claim(ledger, job_id)
    seen.append(ledger.version(job_id))
    for _ in range(2):
        ledger.beat(record, PROGRESS, lease_s=30)
        seen.append(ledger.version(job_id))
    ledger.succeed(record, RESULT)
    seen.append(ledger.version(job_id))

    assert seen == [1, 2, 3, 3, 4]


def test_a_claim_whose_answer_was_lost_is_found_again_by_the_same_call(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    job_id, other = create(ledger), create(ledger)
    script = load_script(redis_client, "claim")
    arguments = ["node-1", 30_000, 3, 3_600_000, "one-call", "a-process", 1, "{}", QUEUE]

    first, again = script(args=arguments), script(args=arguments)

    assert first[:3] == again[:3] == ["claimed", QUEUE, 1]
    first_record, second_record = (dict(zip(answer[3::2], answer[4::2], strict=True)) for answer in (first, again))
    assert second_record == first_record
    assert (read(ledger, job_id).attempt, read(ledger, other).status) == (1, Status.QUEUED)


def test_a_claim_that_arrives_after_a_later_one_of_its_process_claims_nothing(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    jobs = [create(ledger) for _ in range(4)]
    script = load_script(redis_client, "claim")

    def claim_by(process: str, number: int) -> str:
        arguments = ["node-1", 30_000, 3, 3_600_000, f"call-{process}-{number}", process, number, "{}", QUEUE]
        return str(script(args=arguments)[0])

    # The process starts again: its successor counts anew.
    assert [claim_by("one", 9), claim_by("one", 10), claim_by("one", 9), claim_by("two", 1)] == [
        *("claimed", "claimed", "none", "claimed")
    ]
    assert [read(ledger, job).status for job in jobs] == [*([Status.PROCESSING] * 3), Status.QUEUED]


def reserve(ledger: Ledger, max_in_flight: int) -> Reservation | Creation:
    return ledger.reserve(new_job("newcomer"), NewImages(1, 1000, 3600), max_in_flight=max_in_flight)


def test_a_reservation_is_used_once_or_given_back_and_leaves_nothing(ledger: Ledger, redis_client: redis.Redis) -> None:
    used, unused, refused = (reserve(ledger, max_in_flight=2) for _ in range(3))
    assert isinstance(used, Reservation)
    assert isinstance(unused, Reservation)
    created = ledger.create(new_job("newcomer"), max_in_flight=2, idempotency_ttl_s=60, reservation=used)
    other = ledger.create(new_job("newcomer"), max_in_flight=2, idempotency_ttl_s=60)
    ledger.give_back(unused)

    assert not isinstance(refused, Reservation)
    assert (refused.outcome, created.outcome, other.outcome) == (
        *(Created.OVER_QUOTA, Created.CREATED, Created.OVER_QUOTA),
    )
    assert set(redis_client.hkeys("mf:bytes:newcomer")) == {"live", "kept"}
    assert redis_client.ttl("mf:bytes:newcomer") == -1


def test_a_reservation_that_is_not_used_expires(ledger: Ledger, redis_client: redis.Redis) -> None:
    reserved = reserve(ledger, max_in_flight=1)

    assert isinstance(reserved, Reservation)
    assert redis_client.hkeys("mf:bytes:newcomer") == [reserved.name]
    assert 0 < redis_client.pttl("mf:bytes:newcomer") <= RESERVED_MS
