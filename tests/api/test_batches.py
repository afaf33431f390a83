"""Batches over the API: accepted or refused as a whole, visible to their owner, reported by the courier."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from flask import Flask

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.batch import BatchStatus, BatchView
from maskfleet.jobs.schema.delivery import DeliveryView
from maskfleet.jobs.schema.events import BatchEvent
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import MAX_BATCH_IMAGES, Priority
from maskfleet.jobs.settings import CourierSettings
from maskfleet.jobs.storage import Store, upload_key
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.stack.receiver import Receiver
from maskfleet.worker.courier.courier import Courier
from tests.api.caller import Caller, as_base64, check_problem, claim, job, run_to_success
from tests.api.conftest import KEYS, MODEL, SettingsMaker
from tests.api.pictures import HTML_PAGE, a_picture
from tests.conftest import WEBHOOK_MASTER
from tests.taking import take_due
from tests.waiting import wait_until

HOOK = "https://example.com/hook"
QUEUE = queue_name(MODEL, Priority.NORMAL)
BEE, WASP = {"url": "https://example.com/bee.jpg"}, {"url": "https://example.com/wasp.jpg"}
UNKNOWN = "/v1/batches/batch_" + "0" * 32

Json = Any  # a body's own shape


def batch(*images: Json, **fields: Json) -> Json:
    """Return the body of a valid batch, with a test's own changes."""
    return {"mode": "everything", "images": list(images or (BEE, WASP)), **fields}


def send(caller: Caller, *images: Json, **fields: Json) -> BatchView:
    response = caller.post("/v1/batches", batch(*images, **fields))
    assert response.status_code == 202, response.text
    return BatchView.model_validate_json(response.data)


def look(caller: Caller, sent: BatchView) -> BatchView:
    return BatchView.model_validate_json(caller.get(f"/v1/batches/{sent.id}").data)


def fail_all(sent: BatchView, ledger: Ledger) -> None:
    for job_id in sent.job_ids:
        ledger.fail(claim(job_id, ledger), "image_corrupt", "The JPEG file is damaged.")


def deliveries_of(caller: Caller, sent: BatchView) -> list[DeliveryView]:
    shown = caller.get(f"/v1/batches/{sent.id}/deliveries").json["deliveries"]
    return [DeliveryView.model_validate(one) for one in shown]


# Submitting.


def test_each_image_of_a_batch_becomes_a_job_like_any_other(
    apiary: Caller, store: Store, redis_client: redis.Redis
) -> None:
    upload_id = store.put_upload("apiary", a_picture((9, 9)), "image/jpeg")
    images = [{"base64": as_base64(a_picture())}, BEE, {"upload_id": upload_id}, {"s3_uri": "s3://photos/bee.jpg"}]

    response = apiary.post("/v1/batches", batch(*images, outputs=["png"], metadata={"album": "7"}))

    sent = BatchView.model_validate_json(response.data)
    jobs = [JobView.model_validate_json(apiary.get(f"/v1/jobs/{job_id}").data) for job_id in sent.job_ids]
    assert (response.status_code, response.headers["Location"]) == (202, sent.urls.self)
    assert (sent.status, sent.total, sent.done, sent.counts.queued) == (BatchStatus.PROCESSING, 4, 0, 4)
    assert sent.urls.self.endswith(f"/v1/batches/{sent.id}")
    assert look(apiary, sent) == sent
    assert [(one.batch_id, one.status, one.metadata) for one in jobs] == [(sent.id, "queued", {"album": "7"})] * 4
    assert [one.queue_position for one in jobs] == [0, 1, 2, 3]
    assert redis_client.llen(QUEUE) == 4  # a bell for each, up to a few
    specs = [redis_client.hget(f"mf:job:{job_id}", "spec") for job_id in sent.job_ids]
    assert all('"png"' in str(spec) and "base64" not in str(spec) for spec in specs)


def test_a_batch_and_its_jobs_know_which_request_created_them(apiary: Caller, ledger: Ledger) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    response = apiary.post("/v1/batches", batch(), X_Request_Id="album-7", Traceparent=traceparent)

    sent = BatchView.model_validate_json(response.data)
    assert sent.request_id == look(apiary, sent).request_id == response.headers["X-Request-Id"] == "album-7"
    for job_id in sent.job_ids:
        record = ledger.read(job_id)
        assert record is not None
        # Passed on, though this API sends no traces of its own.
        assert (record.request_id, record.traceparent) == ("album-7", traceparent)
        assert apiary.get(f"/v1/jobs/{job_id}").json["request_id"] == "album-7"


def test_a_batch_counts_its_jobs_until_the_last_has_ended(apiary: Caller, ledger: Ledger, store: Store) -> None:
    sent = send(apiary, BEE, WASP, BEE)

    run_to_success(sent.job_ids[0], ledger, store)
    claim(sent.job_ids[1], ledger)
    half = look(apiary, sent)
    apiary.post(f"/v1/jobs/{sent.job_ids[2]}/cancel")
    ledger.cancel(sent.job_ids[1], "apiary")
    record = ledger.read(sent.job_ids[1])
    assert record is not None
    ledger.finish_canceled(record)
    whole = look(apiary, sent)

    assert (half.status, half.done, half.ended_at) == (BatchStatus.PROCESSING, 1, None)
    assert (half.counts.succeeded, half.counts.processing, half.counts.queued) == (1, 1, 1)
    assert (whole.status, whole.done, whole.total) == (BatchStatus.COMPLETED, 3, 3)
    assert (whole.counts.succeeded, whole.counts.canceled) == (1, 2)
    assert whole.ended_at is not None
    assert whole.ended_at >= whole.created_at


def test_a_batch_is_unknown_to_everybody_else(apiary: Caller, bakery: Caller, ledger: Ledger) -> None:
    sent = send(apiary)
    fail_all(sent, ledger)

    for path in (f"/v1/batches/{sent.id}", f"/v1/batches/{sent.id}/deliveries"):
        assert apiary.get(path).status_code == 200
        check_problem(bakery.get(path), 404, "batch_not_found")
    for path in (UNKNOWN, "/v1/batches/x", "/v1/batches/%00", f"/v1/batches/{sent.job_ids[0]}"):
        check_problem(apiary.get(path), 404, "batch_not_found")


@pytest.mark.parametrize(
    ("second", "status", "code", "pointer"),
    [
        ({}, 422, "invalid_spec", "/images/1"),
        ({**BEE, "upload_id": "upl_" + "0" * 32}, 422, "invalid_spec", "/images/1"),
        ({"base64": "%%%"}, 422, "invalid_spec", "/images/1/base64"),
        ({"base64": ""}, 422, "image_empty", "/images/1"),
        ({"base64": as_base64(HTML_PAGE)}, 422, "not_an_image", "/images/1"),
        ({"base64": as_base64(a_picture((64, 8)))}, 422, "point_outside_image", "/images/1"),
        ({"base64": as_base64(a_picture() + b"\0" * 5000)}, 413, "image_file_too_large", "/images/1"),
        ({"upload_id": "upl_" + "0" * 32}, 404, "upload_not_found", "/images/1"),
        ({"s3_uri": "s3://secrets/bee.jpg"}, 403, "bucket_not_allowed", "/images/1"),
        ({"url": "https://127.0.0.1/bee.jpg"}, 422, "url_not_allowed", "/images/1/url"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_one_image_at_fault_is_named_and_nothing_is_recorded(
    make_settings: SettingsMaker, redis_client: redis.Redis, second: Json, status: int, code: str, pointer: str
) -> None:
    caller = Caller(create_app(make_settings(max_image_bytes=5000)), KEYS["apiary"])
    good = {"base64": as_base64(a_picture())}

    response = caller.post("/v1/batches", batch(good, second, mode="point", prompts=[{"points": [[9, 40]]}]))

    problem = check_problem(response, status, code)
    assert problem.errors is not None
    # What is wrong with a prompt follows what is wrong with the image.
    assert [error.pointer for error in problem.errors if not error.pointer.startswith("/prompts/")] == [pointer]
    assert problem.detail.startswith(f"{pointer}: ")
    assert redis_client.keys("*") == []


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"images": []}, 422, "invalid_spec"),
        ({"images": [BEE] * (MAX_BATCH_IMAGES + 1)}, 422, "invalid_spec"),
        ({"images": [BEE] * 4}, 422, "too_many_images"),
        ({"image": BEE}, 422, "invalid_spec"),
        ({"model": "sam-unheard-of"}, 422, "unknown_model"),
        ({"webhook": {"url": "http://10.0.0.1/hook"}}, 422, "url_not_allowed"),
        (
            {"mode": "box", "prompts": [{"box": [0, 0, 9, 9], "mask_input": {"upload_id": "upl_" + "0" * 32}}]},
            422,
            "mask_input_not_found",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_batch_at_fault_is_refused(
    make_settings: SettingsMaker, redis_client: redis.Redis, fields: Json, status: int, code: str
) -> None:
    caller = Caller(create_app(make_settings(max_batch_images=3)), KEYS["apiary"])

    check_problem(caller.post("/v1/batches", {**batch(), **fields}), status, code)

    assert redis_client.keys("*") == []


def test_a_body_that_is_no_batch_is_refused(apiary: Caller) -> None:
    check_problem(apiary.post_bytes("/v1/batches", b"{"), 400, "malformed_json")
    check_problem(apiary.post_bytes("/v1/batches", b"[]", "text/plain"), 415, "unsupported_media_type")
    check_problem(apiary.post("/v1/batches", batch(), Idempotency_Key="a b"), 400, "invalid_idempotency_key")


def test_jobs_that_are_too_much_for_redis_together_are_refused(apiary: Caller, redis_client: redis.Redis) -> None:
    prompts = [{"points": [[number, 1]] * 200} for number in range(100)]
    more = [{"points": [[number, 1]] * 256} for number in range(400)]

    several = apiary.post("/v1/batches", batch(*[BEE] * 100, mode="point", prompts=prompts))
    each = apiary.post("/v1/batches", batch(mode="point", prompts=more))

    check_problem(several, 413, "batch_too_large")
    check_problem(each, 413, "spec_too_large")
    assert redis_client.keys("*") == []


def test_the_same_key_and_body_give_the_same_batch(apiary: Caller) -> None:
    inline = {"base64": as_base64(a_picture())}

    first = apiary.post("/v1/batches", batch(inline, BEE), Idempotency_Key="album-7")
    again = apiary.post("/v1/batches", batch(inline, BEE), Idempotency_Key="album-7")

    assert again.json == first.json
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    for other in (batch(BEE, inline), batch(inline, BEE, webhook={"url": HOOK}), batch(inline)):
        response = apiary.post("/v1/batches", other, Idempotency_Key="album-7")
        check_problem(response, 422, "idempotency_key_reused")
    check_problem(apiary.send(job(), Idempotency_Key="album-7"), 422, "idempotency_key_reused")


def test_the_key_of_a_batch_that_is_forgotten_says_so(apiary: Caller, redis_client: redis.Redis) -> None:
    sent = apiary.post("/v1/batches", batch(), Idempotency_Key="k").json
    redis_client.delete(f"mf:batch:{sent['id']}")

    check_problem(apiary.post("/v1/batches", batch(), Idempotency_Key="k"), 404, "batch_not_found")


# Limits.


def test_a_batch_counts_as_many_jobs_as_it_has_images(make_settings: SettingsMaker, redis_client: redis.Redis) -> None:
    caller = Caller(create_app(make_settings(tenant_jobs_in_flight="apiary:3")), KEYS["apiary"])
    caller.a_job()
    before = set(redis_client.keys())

    refused = caller.post("/v1/batches", batch(BEE, BEE, BEE))

    check_problem(refused, 429, "too_many_jobs_in_flight")
    assert set(redis_client.keys()) == before
    assert send(caller, BEE, BEE).total == 2
    check_problem(caller.send(job()), 429, "too_many_jobs_in_flight")


def test_a_batch_whose_last_job_would_wait_too_long_is_refused(
    make_settings: SettingsMaker, redis_client: redis.Redis, worker_registry: WorkerRegistry
) -> None:
    caller = Caller(create_app(make_settings(max_backlog_s=2.5)), KEYS["apiary"])
    worker_registry.announce(WorkerSeen("node-0", MODEL, "cpu", 1, 0))
    redis_client.hset("mf:totals", f"pace:{QUEUE}", 1000)

    refused = caller.post("/v1/batches", batch(BEE, BEE, BEE, BEE))

    check_problem(refused, 503, "backlog_full")
    assert int(refused.headers["Retry-After"]) >= 1
    assert send(caller, BEE, BEE, BEE).total == 3


def test_a_batch_is_one_request_and_needs_the_scope_to_write(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    app = create_app(make_settings(rate_limit="2/minute"))
    _, reading = KeyStore(redis_client).create("apiary", [Scope.READ])
    reader = Caller(app, reading.get_secret_value())

    sent = send(Caller(app, KEYS["apiary"]), *[BEE] * 5)

    check_problem(reader.post("/v1/batches", batch()), 403, "missing_scope")
    assert look(reader, sent) == sent
    check_problem(reader.get(f"/v1/batches/{sent.id}"), 429, "rate_limited")


# Failures.


def test_without_redis_or_store_or_room_nothing_is_taken_in(
    without_redis: Caller, without_store: Caller, apiary: Caller, redis_client: redis.Redis
) -> None:
    inline = {"base64": as_base64(a_picture())}

    check_problem(without_redis.post("/v1/batches", batch()), 503, "queue_unavailable")
    check_problem(without_redis.get(UNKNOWN), 503, "queue_unavailable")
    check_problem(without_store.post("/v1/batches", batch(BEE, inline)), 503, "store_unavailable")
    redis_client.config_set("maxmemory", 1)
    try:
        full = apiary.post("/v1/batches", batch(), Idempotency_Key="k")
    finally:
        redis_client.config_set("maxmemory", 0)
    check_problem(full, 503, "queue_unavailable")

    assert redis_client.keys("mf:*") == ["mf:schema"]
    assert apiary.post("/v1/batches", batch(), Idempotency_Key="k").status_code == 202


def test_a_recorded_batch_is_taken_in_though_no_message_can_be_sent(
    make_settings: SettingsMaker, redis_client: redis.Redis, redis_url: str, ledger: Ledger
) -> None:
    # A user that may write the ledger's keys but no queue.
    redis_client.execute_command("ACL", "SETUSER", "door", "on", ">word", "~mf:*", "+@all")
    settings = make_settings(redis_url=redis_url.replace("redis://", "redis://door:word@"))
    caller = Caller(create_app(settings), KEYS["apiary"])
    try:
        sent = send(caller, BEE, WASP, BEE)
    finally:
        redis_client.execute_command("ACL", "DELUSER", "door")

    assert len(sent.job_ids) == 3
    assert ledger.silent_queues() == {QUEUE: 3}  # the courier rings for them


# Webhooks.


@contextmanager
def courier(shared_fields: dict[str, str]) -> Iterator[None]:
    over = threading.Event()
    settings = CourierSettings(
        **shared_fields,
        webhook_master_secrets=WEBHOOK_MASTER,
        egress_allow_private=True,
        tick_s=0.05,
        sweep_s=0,
        public_url="https://masks.example.com/",
    )
    thread = threading.Thread(target=Courier(settings).run, args=(over.is_set,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)


@pytest.fixture
def private(make_settings: SettingsMaker, redis_client: redis.Redis) -> Flask:
    """The app on a closed network."""
    return create_app(make_settings(egress_allow_private=True))


def test_the_end_of_a_batch_is_signed_sent_and_sent_again(
    private: Flask, ledger: Ledger, deliveries: Deliveries, shared_fields: dict[str, str]
) -> None:
    caller = Caller(private, KEYS["apiary"])
    began = datetime.now(UTC) - timedelta(seconds=60)  # Redis' clock may differ
    with Receiver(tenant_secret(WEBHOOK_MASTER, "apiary")) as receiver:
        sent = send(caller, webhook={"url": receiver.url}, metadata={"album": "7"})
        ledger.fail(claim(sent.job_ids[0], ledger), "image_corrupt", "The JPEG file is damaged.")
        caller.post(f"/v1/jobs/{sent.job_ids[1]}/cancel")
        with courier(shared_fields):
            wait_until(lambda: deliveries_of(caller, sent)[0].state == "delivered")
            [first] = deliveries_of(caller, sent)
            again = caller.post(f"/v1/deliveries/{first.id}/redeliver")
            wait_until(lambda: len(deliveries_of(caller, sent)[0].tries) == 2)
            since = {"from": began.isoformat(), "only_failed": False}
            ranged = caller.post("/v1/deliveries/redeliver", since)
            wait_until(lambda: len(deliveries_of(caller, sent)[0].tries) == 3)

        [event] = receiver.events  # by its webhook-id; it arrived three times
        [shown] = deliveries_of(caller, sent)
        record = deliveries.read(shown.id, "apiary")
        assert receiver.refused == ()

    assert isinstance(event, BatchEvent)
    assert (event.type, event.data.id, event.data.status) == ("batch.completed", sent.id, "completed")
    assert (event.data.total, event.data.counts.failed, event.data.counts.canceled) == (2, 1, 1)
    assert (event.data.counts.succeeded, event.data.counts.expired, event.data.metadata) == (0, 0, {"album": "7"})
    assert event.timestamp == look(caller, sent).ended_at
    assert event.data.request_id == sent.request_id
    assert event.data.urls.self == f"https://masks.example.com/v1/batches/{sent.id}"
    assert (shown.id, shown.type, shown.batch_id) == (f"msg_{sent.id}_1_completed", "batch.completed", sent.id)
    assert [made.status for made in shown.tries] == [204, 204, 204]
    assert (again.status_code, ranged.json["queued"]) == (202, [shown.id])
    assert record is not None
    assert len(record.body.encode()) < 20_000
    assert caller.get(f"/v1/deliveries/{shown.id}").json["batch_id"] == sent.id


def test_a_batch_that_is_open_again_when_the_courier_comes_is_not_told_of(
    private: Flask, ledger: Ledger, deliveries: Deliveries, shared_fields: dict[str, str]
) -> None:
    caller = Caller(private, KEYS["apiary"])
    with Receiver(tenant_secret(WEBHOOK_MASTER, "apiary")) as receiver:
        sent = send(caller, webhook={"url": receiver.url})
        fail_all(sent, ledger)
        [under_way] = take_due(deliveries, lease_s=0)  # a courier took it, and died
        assert caller.post(f"/v1/jobs/{sent.job_ids[0]}/retry").status_code == 202
        assert deliveries_of(caller, sent)[0].state == "waiting"

        with courier(shared_fields):
            wait_until(lambda: deliveries_of(caller, sent)[0].state == "dropped")
            ledger.fail(claim(sent.job_ids[0], ledger), "image_corrupt", "The JPEG file is damaged.")
            wait_until(lambda: deliveries_of(caller, sent)[-1].state == "delivered")

        [event] = receiver.events
    assert (event.type, [one.id for one in deliveries_of(caller, sent)]) == (
        "batch.completed",
        [under_way.id, f"msg_{sent.id}_2_completed"],
    )


def test_the_default_endpoint_is_told_of_the_batch_and_not_of_each_job(
    make_settings: SettingsMaker, ledger: Ledger, deliveries: Deliveries
) -> None:
    caller = Caller(create_app(make_settings(webhook_endpoints=f"apiary:{HOOK}")), KEYS["apiary"])

    fail_all(send(caller), ledger)
    fail_all(send(caller, webhook={"url": "https://example.com/other", "events": ["failed"]}), ledger)

    assert sorted((one.url, one.event) for one in take_due(deliveries)) == [
        (HOOK, "completed"),
        ("https://example.com/other", "failed"),
        ("https://example.com/other", "failed"),
    ]


def test_a_batch_without_a_webhook_has_no_deliveries(apiary: Caller, ledger: Ledger) -> None:
    sent = send(apiary)
    fail_all(sent, ledger)

    assert deliveries_of(apiary, sent) == []


def test_a_job_that_is_retried_or_deleted_stays_in_its_batch(
    apiary: Caller, ledger: Ledger, store: Store, redis_client: redis.Redis
) -> None:
    sent = send(apiary, webhook={"url": HOOK})
    fail_all(sent, ledger)

    apiary.post(f"/v1/jobs/{sent.job_ids[0]}/retry")
    opened = look(apiary, sent)
    assert apiary.delete(f"/v1/jobs/{sent.job_ids[1]}").status_code == 204
    run_to_success(sent.job_ids[0], ledger, store)
    ended = look(apiary, sent)

    assert (opened.status, opened.counts.queued, opened.counts.failed) == (BatchStatus.PROCESSING, 1, 1)
    assert (ended.status, ended.counts.succeeded, ended.counts.failed) == (BatchStatus.COMPLETED, 1, 1)
    assert (ended.total, ended.job_ids) == (2, sent.job_ids)
    assert [(one.id, one.state) for one in deliveries_of(apiary, sent)] == [
        (f"msg_{sent.id}_1_completed", "dropped"),
        (f"msg_{sent.id}_2_completed", "waiting"),
    ]


def test_an_image_that_came_along_is_stored_once(apiary: Caller, store: Store, redis_client: redis.Redis) -> None:
    same = {"base64": as_base64(a_picture((21, 12)))}

    sent = send(apiary, same, same)

    specs = {str(redis_client.hget(f"mf:job:{job_id}", "spec")) for job_id in sent.job_ids}
    assert len(specs) == 1
    upload_id = specs.pop().partition('"upload_id":"')[2][:36]
    assert store.head(upload_key("apiary", upload_id)) is not None
