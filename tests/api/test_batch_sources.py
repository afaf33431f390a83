"""Batches from a prefix or a manifest: taken in at once, expanded and collected by couriers, merged in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import requests

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.batches import Batches, Page
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.reconciler import Reconciler
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.schema.batch import BatchRecord, BatchView, Expansion
from maskfleet.jobs.schema.batch_spec import BatchPlan, BatchSource
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile
from maskfleet.jobs.schema.record import ImageGeoreference, JobRecord, Metrics
from maskfleet.jobs.settings import CourierSettings, SharedSettings
from maskfleet.jobs.storage import Store, attempt_prefix, manifest_key, result_prefix
from maskfleet.worker.courier.batches import MERGES_AT_ONCE, BatchWork
from maskfleet.worker.courier.listing import count_after
from tests.api.caller import Caller, check_problem
from tests.api.conftest import KEYS, SettingsMaker
from tests.conftest import PHOTOS_BUCKET, WEBHOOK_MASTER
from tests.taking import take_due
from tests.waiting import wait_until

Json = Any  # a body's own shape
QUEUE = "sam.sam-demo.normal"
HOOK = "https://example.com/hook"


class Photos:
    """A folder of its own in the callers' bucket."""

    def __init__(self, store_fields: dict[str, str]) -> None:
        self._store = Store(SharedSettings(**{**store_fields, "bucket": PHOTOS_BUCKET}))
        self.folder = f"tiles-{uuid.uuid4().hex}/"
        self.uri = f"s3://{PHOTOS_BUCKET}/{self.folder}"

    def put(self, *names: str, data: bytes = b"an image") -> None:
        for name in names:
            self._store.put(self.folder + name, data, "image/png")

    def manifest(self, *lines: Json) -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        self._store.put(self.folder + "list.jsonl", text.encode(), "application/jsonl")
        return f"{self.uri}list.jsonl"


@pytest.fixture
def photos(store_fields: dict[str, str]) -> Photos:
    return Photos(store_fields)


@pytest.fixture
def make_work(redis_client: redis.Redis, ledger: Ledger, shared_fields: dict[str, str]) -> Callable[..., BatchWork]:
    """Makes a courier's work on batches, with a test's own settings."""

    def make(**fields: Any) -> BatchWork:  # Any: a settings field's own type
        known = {**shared_fields, "allowed_buckets": PHOTOS_BUCKET, "tick_s": 0.001}
        settings = CourierSettings(**{**known, **fields})
        return BatchWork(
            ledger, Batches(redis_client), Store(settings), Bells(redis_client, Publisher(settings)), settings
        )

    return make


def send(caller: Caller, **fields: Json) -> BatchView:
    response = caller.post("/v1/batches", {"mode": "everything", **fields})
    assert response.status_code == 202, response.text
    return BatchView.model_validate_json(response.data)


def look(caller: Caller, sent: BatchView) -> BatchView:
    return BatchView.model_validate_json(caller.get(f"/v1/batches/{sent.id}").data)


def read(client: redis.Redis, sent: BatchView) -> BatchRecord:
    record = Batches(client).read(sent.id)
    assert record is not None
    return record


def step(work: BatchWork, client: redis.Redis) -> None:
    """Take one step of each batch, whether or not it is due."""
    for batch_id in client.zrange("mf:batch_work", 0, -1):
        client.zadd("mf:batch_work", {batch_id: 0})
    work.run()


def claim_all(ledger: Ledger, most: int = 10_000) -> list[JobRecord]:
    """Claim what is queued, oldest first."""
    records = []
    while len(records) < most:
        record = ledger.claim_next((QUEUE,), "node-1", lease_s=600, max_attempts=3).record
        if record is None:
            break
        records.append(record)
    return records


def succeed(record: JobRecord, ledger: Ledger, store: Store, masks: int = 2) -> None:
    """Act as a worker that finds so many masks."""
    folder = attempt_prefix(record.tenant, record.id, record.attempt, record.fence, record.token)
    annotations = [{"id": number, "image_id": 1, "category_id": 1, "area": 7} for number in range(1, masks + 1)]
    files = []
    texts = {"coco.json": json.dumps({"annotations": annotations})}
    if "geojson" in record.summary.outputs:
        texts["outlines.geojson"] = outlines(masks)
    for name, text in texts.items():
        store.put(f"{folder}/{name}", text.encode(), "application/json")
        about = {"size": len(text), "sha256": "0" * 64, "content_type": "application/json"}
        files.append(ManifestFile(name=name, key=f"{folder}/{name}", **about))
    manifest = Manifest(
        job_id=record.id,
        attempt=1,
        mode="everything",
        model="m",
        created_at="2026-01-01T00:00:00Z",
        image_width=48,
        image_height=64,
        masks=(),
        files=tuple(files),
        georeference=ImageGeoreference(crs="EPSG:32633", transform=(1, 0, 0, 0, -1, 0)),
        metrics=Metrics(),
    )
    key = manifest_key(record.tenant, record.id)
    store.put(key, manifest.model_dump_json().encode(), "application/json")
    ledger.succeed(record, manifest.summary(result_prefix(record.tenant, record.id), key))


def outlines(masks: int) -> str:
    """Return what worker/output/outlines.py writes of so many masks, each a square."""
    square = '{"type": "Polygon", "coordinates": [[[0,0],[1,0],[1,1],[0,1],[0,0]]]}'
    features = (
        f'{{"type": "Feature", "id": {number}, "properties": {{"area": 7}}, "geometry": {square}}}'
        for number in range(1, masks + 1)
    )
    return '{"type": "FeatureCollection",\n"image": {},\n"features": [\n' + ",\n".join(features) + "\n]}\n"


def run_through(work: BatchWork, ledger: Ledger, store: Store, client: redis.Redis, sent: BatchView) -> None:
    """Act as couriers and workers until the batch is completed."""
    for _ in range(50):
        step(work, client)
        if read(client, sent).ended_ms is not None:
            return
        for record in claim_all(ledger):
            succeed(record, ledger, store)
    raise AssertionError("The batch does not end.")


# At the door.


def test_a_prefix_is_taken_in_at_once_and_its_objects_become_jobs(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis, ledger: Ledger
) -> None:
    photos.put("a.png", "b.png", "deep/c.png", "note.txt", "B.PNG")

    sent = send(apiary, source={"prefix": photos.uri, "pattern": "*.png"}, metadata={"album": "7"})
    work = make_work()
    step(work, redis_client)
    seen = look(apiary, sent)

    assert sent.expansion is not None
    assert (sent.total, sent.status, sent.expansion.state, sent.job_ids) == (0, "processing", Expansion.OPEN, ())
    assert seen.expansion is not None
    assert (seen.expansion.state, seen.expansion.listed, seen.expansion.rejected) == (Expansion.DONE, 3, 0)
    assert (seen.total, seen.counts.queued) == (3, 3)
    records = [ledger.read(job_id) for job_id in seen.job_ids]
    assert [record.source for record in records if record] == [
        photos.uri + name for name in ("a.png", "b.png", "deep/c.png")
    ]
    assert [(record.batch_id, record.summary.metadata) for record in records if record] == [
        (sent.id, {"album": "7"})
    ] * 3


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ({"prefix": "s3://secrets/tiles/"}, 403, "bucket_not_allowed"),
        ({"prefix": "s3://maskfleet/uploads/"}, 403, "bucket_not_allowed"),
        ({"prefix": f"s3://{PHOTOS_BUCKET}/no-such-folder/"}, 422, "source_not_found"),
        ({"manifest": f"s3://{PHOTOS_BUCKET}/no-such.jsonl"}, 422, "source_not_found"),
        ({"manifest": "s3://secrets/list.jsonl"}, 403, "bucket_not_allowed"),
        ({"prefix": f"s3://{PHOTOS_BUCKET}/../x/"}, 422, "invalid_spec"),
        ({"prefix": f"s3://{PHOTOS_BUCKET}/a//b/"}, 422, "invalid_spec"),
        ({"prefix": "photos/"}, 422, "invalid_spec"),
        ({"prefix": f"s3://{PHOTOS_BUCKET}/a/", "pattern": "a/*.png"}, 422, "invalid_spec"),
        ({"prefix": f"s3://{PHOTOS_BUCKET}/a/", "manifest": f"s3://{PHOTOS_BUCKET}/a"}, 422, "invalid_spec"),
        ({}, 422, "invalid_spec"),
    ],
    ids=str,
)
def test_a_source_at_fault_is_refused(
    apiary: Caller, redis_client: redis.Redis, source: Json, status: int, code: str
) -> None:
    check_problem(apiary.post("/v1/batches", {"mode": "everything", "source": source}), status, code)

    assert redis_client.keys("mf:batch*") == []


def test_a_tenant_may_name_only_prefixes_within_its_folder(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    settings = make_settings(allowed_buckets=f"apiary:{PHOTOS_BUCKET}/apiary,bakery:{PHOTOS_BUCKET}/bakery")
    apiary = Caller(create_app(settings), KEYS["apiary"])

    for prefix in ("", "apia", "apiary", "apiary-private/", "bakery/"):
        body = {"mode": "everything", "source": {"prefix": f"s3://{PHOTOS_BUCKET}/{prefix}"}}
        check_problem(apiary.post("/v1/batches", body), 403, "bucket_not_allowed")


def test_the_same_key_finds_the_batch_and_a_tenant_has_only_so_many_open(
    make_settings: SettingsMaker, photos: Photos, redis_client: redis.Redis
) -> None:
    caller = Caller(create_app(make_settings(max_open_batches=2)), KEYS["apiary"])
    photos.put("a.png")
    body = {"mode": "everything", "source": {"prefix": photos.uri}}

    first, again = (caller.post("/v1/batches", body, Idempotency_Key="k") for _ in range(2))
    caller.post("/v1/batches", body)

    assert first.json["id"] == again.json["id"]
    other = {**body, "source": {**body["source"], "pattern": "*.jpg"}}
    check_problem(caller.post("/v1/batches", other, Idempotency_Key="k"), 422, "idempotency_key_reused")
    check_problem(caller.post("/v1/batches", body), 429, "too_many_batches")


# Expansion.


def test_no_more_jobs_than_the_window_are_open_at_once(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(25))})
    work, most, ended = make_work(batch_window=10), 0, []

    while read(redis_client, sent).ended_ms is None:
        step(work, redis_client)
        most = max(most, redis_client.scard("mf:inflight:apiary"))
        for record in claim_all(ledger, 4):
            succeed(record, ledger, store)
            ended.append(record.source)

    assert most == 10
    assert ended == [f"s3://{PHOTOS_BUCKET}/{number}.png" for number in range(25)]
    assert look(apiary, sent).counts.succeeded == 25


def test_callers_learn_how_many_images_there_will_be(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis
) -> None:
    photos.put("a.png", "b.txt", "c.png", "deep/d.png", "deep/")
    sent = send(apiary, source={"prefix": photos.uri, "pattern": "*.png"})
    work = make_work(batch_window=1)

    step(work, redis_client)
    counted = look(apiary, sent).expansion
    photos.put("e.png", "f.png")
    canceled = BatchView.model_validate_json(apiary.post(f"/v1/batches/{sent.id}/cancel").data).expansion

    assert sent.expansion is not None
    assert counted is not None
    assert canceled is not None
    assert [(one.listed, one.found) for one in (sent.expansion, counted, canceled)] == [(0, None), (1, 3), (1, 3)]


def test_images_are_counted_page_by_page(photos: Photos, shared_fields: dict[str, str], store: Store) -> None:
    photos.put("a.png", "b.txt", "c.png", "d.png")
    plan = BatchPlan(
        source=BatchSource(prefix=photos.uri, pattern="*.png"),
        spec="",
        queue=QUEUE,
        bucket="maskfleet",
        start_deadline_s=1,
        max_in_flight=1,
        max_bytes=1,
        coco=True,
    )
    settings = CourierSettings(**shared_fields, allowed_buckets=PHOTOS_BUCKET)
    counts, after = [], ""

    while not counts or after:
        count, after = count_after(plan, after, 2, tenant="apiary", store=store, settings=settings)
        counts.append(count)

    assert counts == [1, 2]


def _lines(count: int) -> Iterator[Json]:
    return ({"image": {"s3_uri": f"s3://{PHOTOS_BUCKET}/{number}.png"}} for number in range(count))


def test_lines_may_differ_and_those_at_fault_are_failures_with_their_number(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    image = {"s3_uri": f"s3://{PHOTOS_BUCKET}/a.png"}
    lines = [
        {"image": image},
        "",
        {"image": image, "mode": "box", "prompts": [{"box": [1, 2, 3, 4]}], "metadata": {"n": "2"}},
        "not json",
        {"image": {"s3_uri": "s3://secrets/a.png"}},
        {"image": image, "priority": "interactive"},
        {"image": {"s3_uri": photos.uri}},
        {"image": image, "mode": "box", "prompts": []},
        {"image": {"url": "https://127.0.0.1/a.png"}},
        {"image": {"base64": "aaaa"}},
        {"image": image, "metadata": {"long": "x" * 300_000}},
        {"image": {**image, "file_name": "last.png"}},
    ]
    sent = send(apiary, source={"manifest": photos.manifest(*lines)})
    work = make_work()

    step(work, redis_client)
    records = claim_all(ledger)
    for record in records:
        succeed(record, ledger, store)
    step(work, redis_client)
    step(work, redis_client)
    seen = look(apiary, sent)
    failures = apiary.get(f"/v1/batches/{sent.id}/failures").json["failures"]

    assert [(record.spec.mode, record.summary.metadata) for record in records] == [
        ("everything", {}),
        ("box", {"n": "2"}),
        ("everything", {}),
    ]
    assert records[2].file_name == "last.png"
    assert [(one["number"], one["code"], one["detail"].partition(":")[0]) for one in failures] == [
        (3, "malformed_json", "Line 4"),
        (4, "bucket_not_allowed", "Line 5"),
        (5, "invalid_spec", "Line 6"),
        (6, "invalid_spec", "Line 7"),
        (7, "invalid_spec", "Line 8"),
        (8, "url_not_allowed", "Line 9"),
        (9, "image_not_stored", "Line 10"),
        (10, "spec_too_large", "Line 11"),
    ]
    assert (seen.status, seen.total, seen.counts.succeeded, seen.counts.failed) == ("completed", 11, 3, 8)


def test_a_line_that_is_longer_than_what_is_read_at_once_is_one_failure(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis
) -> None:
    image = {"s3_uri": f"s3://{PHOTOS_BUCKET}/a.png"}
    endless = json.dumps({"image": image, "metadata": {"long": "x" * (5 * 2**19)}})
    sent = send(apiary, source={"manifest": photos.manifest({"image": image}, endless, {"image": image})})
    work = make_work()

    for _ in range(5):
        step(work, redis_client)
    seen = look(apiary, sent)

    assert seen.expansion is not None
    assert (seen.expansion.state, seen.expansion.listed, seen.expansion.rejected) == (Expansion.DONE, 3, 1)


def test_a_manifest_that_is_replaced_meanwhile_ends_the_expansion(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(3))})
    photos.manifest(*_lines(4))

    step(make_work(), redis_client)
    seen = look(apiary, sent)

    assert seen.expansion is not None
    assert seen.expansion.error is not None
    assert (seen.expansion.state, seen.expansion.error.code) == (Expansion.FAILED, "manifest_changed")
    assert seen.status == "completed"


def test_a_tenants_quota_pauses_its_batch(
    make_settings: SettingsMaker,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
) -> None:
    caller = Caller(create_app(make_settings(tenant_jobs_in_flight="apiary:10")), KEYS["apiary"])
    sent = send(caller, source={"manifest": photos.manifest(*_lines(8))})
    for _ in range(8):
        caller.a_job(image={"url": "https://example.com/bee.jpg"})

    step(make_work(), redis_client)
    full = read(redis_client, sent).listed
    for record in claim_all(ledger):
        ledger.fail(record, "image_corrupt", "It is damaged.")
    step(make_work(), redis_client)

    assert (full, read(redis_client, sent).listed) == (0, 5)


@pytest.mark.parametrize("kind", ["prefix", "manifest"])
def test_of_two_couriers_at_one_step_only_one_takes_it(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    kind: str,
) -> None:
    photos.put(*(f"{number}.png" for number in range(5)))
    source = {"prefix": photos.uri} if kind == "prefix" else {"manifest": photos.manifest(*_lines(5))}
    sent = send(apiary, source=source)
    one, other = make_work(batch_window=1), make_work(batch_window=1)
    before = read(redis_client, sent)

    step(one, redis_client)
    other._expand(before, BatchPlan.model_validate_json(before.plan))  # as it read the batch before the other's step

    assert read(redis_client, sent).listed == 1
    assert redis_client.zcard(f"mf:batch_open:{sent.id}") == 1


def test_a_courier_that_is_killed_within_an_expansion_leaves_no_image_out_and_none_twice(
    apiary: Caller, photos: Photos, redis_client: redis.Redis, shared_fields: dict[str, str]
) -> None:
    count = 3000
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(count))})
    environment = {
        **os.environ,
        **{f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()},
        "MASKFLEET_ALLOWED_BUCKETS": PHOTOS_BUCKET,
        "MASKFLEET_TICK_S": "0.05",
        "MASKFLEET_SWEEP_S": "0",
        "MASKFLEET_WEBHOOK_MASTER_SECRETS": WEBHOOK_MASTER,
    }

    def listed() -> int:
        return int(redis_client.hget(f"mf:batch:{sent.id}", "listed") or 0)

    half = 0
    # The first one is killed as soon as it has taken a step, most likely within one of the next.
    for window, enough in (("2000", 1), ("5000", count)):
        redis_client.zadd("mf:batch_work", {sent.id: 0}, xx=True)  # as if the dead one's lease had run out
        command = [sys.executable, "-m", "maskfleet.worker.courier.courier"]
        courier = subprocess.Popen(command, env={**environment, "MASKFLEET_BATCH_WINDOW": window})
        try:
            wait_until(lambda enough=enough: listed() >= enough, deadline_s=60)
        finally:
            courier.kill()
            courier.wait(10)
        half = half or listed()
    jobs = redis_client.zrange(f"mf:batch_open:{sent.id}", 0, -1, withscores=True)
    sources = [redis_client.hget(f"mf:job:{job_id}", "source") for job_id, _ in jobs]

    assert 0 < half < count
    assert [number for _, number in jobs] == list(range(1, count + 1))
    assert sources == [f"s3://{PHOTOS_BUCKET}/{number}.png" for number in range(count)]
    assert read(redis_client, sent).counts.queued == count == redis_client.scard("mf:inflight:apiary")


# The end.


def test_in_the_end_all_masks_are_one_dataset_that_the_webhook_names(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
    deliveries: Deliveries,
) -> None:
    photos.put("a.png", "b.png", "c.png", "d.png")
    sent = send(apiary, source={"prefix": photos.uri}, webhook={"url": HOOK})
    work = make_work()
    step(work, redis_client)
    records = claim_all(ledger)
    for number, record in enumerate(records):
        if number == 1:
            ledger.fail(record, "image_corrupt", "It is damaged.")
        else:
            succeed(record, ledger, store, masks=number)
    told_early = take_due(deliveries)

    step(work, redis_client)
    step(work, redis_client)
    seen = look(apiary, sent)
    link = apiary.get(f"/v1/batches/{sent.id}/files/coco.json")
    coco = requests.get(link.headers["Location"], timeout=10).json()
    outcomes = requests.get(apiary.get(f"/v1/batches/{sent.id}/files/outcomes.jsonl").headers["Location"], timeout=10)
    [due] = take_due(deliveries)

    assert told_early == []
    assert (due.subject, due.event) == (sent.id, "completed")
    assert (seen.status, seen.counts.succeeded, seen.counts.failed) == ("completed", 3, 1)
    assert seen.urls.coco == f"{seen.urls.self}/files/coco.json"
    assert [(image["id"], image["file_name"], image["width"]) for image in coco["images"]] == [
        (1, "a.png", 48),
        (3, "c.png", 48),
        (4, "d.png", 48),
    ]
    assert [(one["id"], one["image_id"]) for one in coco["annotations"]] == [(1, 3), (2, 3), (3, 4), (4, 4), (5, 4)]
    assert [json.loads(line)["status"] for line in outcomes.text.splitlines()] == [
        "succeeded",
        "failed",
        "succeeded",
        "succeeded",
    ]
    [failure] = apiary.get(f"/v1/batches/{sent.id}/failures").json["failures"]
    assert (failure["number"], failure["file_name"], failure["code"]) == (2, "b.png", "image_corrupt")


def test_outlines_of_all_images_are_one_geojson_file_where_asked_for(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(30))}, outputs=["geojson"])
    work = make_work(batch_window=10)

    run_through(work, ledger, store, redis_client, sent)
    bare = send(apiary, source={"manifest": photos.manifest(*_lines(1))})
    run_through(work, ledger, store, redis_client, bare)
    link = apiary.get(f"/v1/batches/{sent.id}/files/outlines.geojson")
    features = requests.get(link.headers["Location"], timeout=10).json()["features"]

    assert {file.name for file in look(apiary, sent).files} == {"outlines.geojson", "outcomes.jsonl"}
    assert {file.name for file in look(apiary, bare).files} == {"coco.json", "outcomes.jsonl"}
    assert sorted(one["id"] for one in features) == sorted(f"{n}-{mask}" for n in range(1, 31) for mask in (1, 2))
    assert {one["properties"]["image_id"] for one in features} == set(range(1, 31))
    assert {(one["properties"]["area"], one["geometry"]["type"]) for one in features} == {(7, "Polygon")}
    assert all(one["properties"]["file_name"] and one["properties"]["job_id"] for one in features)
    assert {one["properties"]["crs"] for one in features} == {"EPSG:32633"}


def test_ids_are_unique_over_many_pages_and_records_of_collected_jobs_go_early(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(30))})
    work = make_work(batch_window=10, batch_record_s=60)

    run_through(work, ledger, store, redis_client, sent)
    link = apiary.get(f"/v1/batches/{sent.id}/files/coco.json")
    coco = requests.get(link.headers["Location"], timeout=10).json()
    lives = [redis_client.pttl(key) for key in redis_client.keys("mf:job:*")]

    assert sorted(image["id"] for image in coco["images"]) == list(range(1, 31))
    assert [one["id"] for one in coco["annotations"]] == list(range(1, 61))
    assert {one["image_id"] for one in coco["annotations"]} == set(range(1, 31))
    assert len(lives) == 30
    assert max(lives) <= 60_000
    assert redis_client.keys("mf:batch_ended:*") == redis_client.keys("mf:batch_open:*") == []
    assert redis_client.zcard("mf:batch_work") == 0
    assert redis_client.pttl(f"mf:batch_pages:{sent.id}") > 0


def test_a_page_that_two_couriers_write_counts_once(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(3))})
    step(make_work(), redis_client)
    for record in claim_all(ledger):
        succeed(record, ledger, store)
    batches = Batches(redis_client)
    ended = batches.to_collect(sent.id, 10)
    page_one = Page("batches/apiary/x/pages/1", 3, 0, 6)
    ids = [one.job_id for one in ended]

    assert batches.collect(sent.id, 0, 3, page_one, ids, kept_s=60)
    assert not batches.collect(sent.id, 0, 3, page_one, ids, kept_s=60)
    assert read(redis_client, sent).annotations == 6


def test_no_batch_waits_while_the_files_of_others_are_made(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    work, begun = make_work(), list[Callable[[], None]]()
    large = [send(apiary, source={"manifest": photos.manifest(*_lines(1))}) for _ in range(MERGES_AT_ONCE + 1)]
    step(work, redis_client)
    for record in claim_all(ledger):
        succeed(record, ledger, store)

    work.run(begin=begun.append)  # what each batch waits for has ended
    leased = [wait_until(lambda: Batches(redis_client).take(60)), *(Batches(redis_client).take(60) for _ in begun)]
    small = send(apiary, source={"manifest": photos.manifest(*_lines(1))})
    work.run(begin=begun.append)
    for merge in begun:
        merge()

    assert len(begun) == MERGES_AT_ONCE
    [left] = [one.id for one in large if look(apiary, one).status == "processing"]
    assert leased == [left] + [""] * MERGES_AT_ONCE  # another courier may make that one's
    assert look(apiary, small).counts.queued == 1


def test_files_that_a_courier_did_not_finish_are_made_anew(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(3))})
    work, folder = make_work(), f"batches/apiary/{sent.id}/"
    step(work, redis_client)
    for record in claim_all(ledger):
        succeed(record, ledger, store)
    stops = iter([False, False, True])

    redis_client.zadd("mf:batch_work", {sent.id: 0})
    work.run(lambda: next(stops, True))  # told to stop between two parts of the first file
    left = [one.key for one in store.listed(folder) if "/pages/" not in one.key]
    stopped = look(apiary, sent).status
    work.run()
    link = apiary.get(f"/v1/batches/{sent.id}/files/coco.json")

    assert (left, stopped) == ([], "processing")
    assert [image["id"] for image in requests.get(link.headers["Location"], timeout=10).json()["images"]] == [1, 2, 3]


def test_a_canceled_batch_creates_nothing_more_and_ends(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis, ledger: Ledger
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(30))})
    work = make_work(batch_window=10)
    step(work, redis_client)
    [running] = claim_all(ledger, 1)

    canceled = apiary.post(f"/v1/batches/{sent.id}/cancel")
    ledger.finish_canceled(running)
    step(work, redis_client)
    step(work, redis_client)
    seen = look(apiary, sent)

    assert canceled.status_code == 202
    assert seen.expansion is not None
    assert (seen.status, seen.counts.canceled, seen.total) == ("completed", 10, 10)
    assert (seen.expansion.state, seen.expansion.listed) == (Expansion.CANCELED, 10)
    check_problem(apiary.post(f"/v1/batches/{sent.id}/cancel"), 409, "batch_already_ended")
    assert redis_client.scard("mf:inflight:apiary") == 0


def test_a_deleted_batch_leaves_nothing(
    apiary: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    small = BatchView.model_validate_json(
        apiary.post("/v1/batches", {"mode": "everything", "images": [{"s3_uri": f"s3://{PHOTOS_BUCKET}/a.png"}]}).data
    )
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(3))})
    work = make_work()
    check_problem(apiary.delete(f"/v1/batches/{sent.id}"), 409, "batch_not_ended")
    run_through(work, ledger, store, redis_client, sent)
    for record in claim_all(ledger):
        succeed(record, ledger, store)

    deleted = [apiary.delete(f"/v1/batches/{one.id}").status_code for one in (sent, small)]
    check_problem(apiary.get(f"/v1/batches/{sent.id}"), 404, "batch_not_found")
    step(work, redis_client)

    assert deleted == [204, 204]
    assert redis_client.keys("mf:job:*") == redis_client.keys("mf:batch*") == []
    assert list(store.listed(f"batches/apiary/{sent.id}/")) == []
    assert apiary.get("/v1/jobs").json["jobs"] == []


def test_a_job_of_an_expanded_batch_is_not_retried_by_itself(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis, ledger: Ledger
) -> None:
    send(apiary, source={"manifest": photos.manifest(*_lines(1))})
    step(make_work(), redis_client)
    [record] = claim_all(ledger)
    ledger.fail(record, "image_corrupt", "It is damaged.")

    check_problem(apiary.post(f"/v1/jobs/{record.id}/retry"), 409, "job_of_batch")


def test_failures_are_listed_page_by_page(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis, ledger: Ledger
) -> None:
    listed = []
    images = [{"s3_uri": f"s3://{PHOTOS_BUCKET}/{number}.png"} for number in range(5)]
    small = apiary.post("/v1/batches", {"mode": "everything", "images": images}).json
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(5))})
    work = make_work(batch_window=2)
    for _ in range(6):
        step(work, redis_client)
        for record in claim_all(ledger):
            ledger.fail(record, "image_corrupt", "It is damaged.")

    for batch_id in (small["id"], sent.id):
        numbers, url = [], f"/v1/batches/{batch_id}/failures?limit=2"
        while url:
            page = apiary.get(url).json
            numbers += [(one["number"], one["file_name"], one["code"]) for one in page["failures"]]
            url = page["next"] and page["next"].partition("localhost")[2]
        listed.append(numbers)

    assert listed[0] == listed[1] == [(number + 1, f"{number}.png", "image_corrupt") for number in range(5)]
    check_problem(apiary.get(f"/v1/batches/{sent.id}/failures?cursor=x"), 422, "invalid_cursor")


def test_the_reconciler_finds_an_expanded_batch_in_order_and_mends_one_that_is_not(
    apiary: Caller, photos: Photos, make_work: Callable[..., BatchWork], redis_client: redis.Redis, ledger: Ledger
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(3))})
    reconciler = Reconciler(redis_client, 3600)
    idle = sum(mended.total() for mended in reconciler.steps())
    step(make_work(batch_window=2), redis_client)
    in_order = sum(mended.total() for mended in reconciler.steps())
    redis_client.zrem("mf:batch_work", sent.id)
    redis_client.hset(f"mf:batch:{sent.id}", "queued", 7)

    mended = sum(mended.total() for mended in reconciler.steps())

    assert (idle, in_order, mended) == (0, 0, 1)
    assert redis_client.zscore("mf:batch_work", sent.id) is not None
    assert read(redis_client, sent).counts.queued == 2


def test_a_result_outlives_the_record_of_its_job(
    apiary: Caller,
    bakery: Caller,
    photos: Photos,
    make_work: Callable[..., BatchWork],
    redis_client: redis.Redis,
    ledger: Ledger,
    store: Store,
) -> None:
    sent = send(apiary, source={"manifest": photos.manifest(*_lines(1))})
    work = make_work()
    step(work, redis_client)
    [record] = claim_all(ledger)
    succeed(record, ledger, store)
    redis_client.delete(f"mf:job:{record.id}")  # as if its time had passed
    result = f"/v1/jobs/{record.id}/result"

    assert [file["name"] for file in apiary.get(result).json["files"]] == ["coco.json"]
    assert apiary.get(f"/v1/jobs/{record.id}/files/coco.json").status_code == 307
    check_problem(bakery.get(result), 404, "job_not_found")
    check_problem(apiary.get(f"/v1/jobs/job_{'0' * 32}/result"), 404, "job_not_found")
    assert look(apiary, sent).counts.succeeded == 1
