"""One attempt at a job, in this process: the real ledger, store and model."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import redis
from PIL import Image

from maskfleet.jobs.buckets import AllowedBucket
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger.outcomes import Cancel, NewJobs, Reply
from maskfleet.jobs.ledger.workers import WorkerSeen
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import ImageValues, JobRecord, ProgressView
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Stage, Status
from maskfleet.jobs.storage import Store
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.egress import egress_session
from maskfleet.worker.lease import Fenced, Lease
from maskfleet.worker.output.artifacts import Segmented
from tests import taking
from tests.conftest import PHOTOS_BUCKET
from tests.waiting import wait_until

BOX = {"mode": "box", "prompts": [{"box": [20, 20, 80, 80]}]}
QUEUE = "sam.sam-demo.normal"
SLOW = {"mode": "everything", "params": {"points_per_batch": 1}}


def create(bench: Workbench, image: dict[str, str], *, bucket: str = "", **fields: object) -> str:
    spec = json.dumps({**({} if "mode" in fields else BOX), **fields, "image": image})
    job = NewJobs(tenant="ant", queue=QUEUE, specs_json=(spec,), start_deadline_s=60, bucket=bucket)
    return bench.ledger.create(job, max_in_flight=100, idempotency_ttl_s=60).id


def upload(bench: Workbench, data: bytes, **fields: object) -> str:
    return create(bench, {"upload_id": bench.store.put_upload("ant", data, "image/png")}, **fields)


def read(bench: Workbench, job_id: str) -> JobRecord:
    record = bench.ledger.read(job_id)
    assert record is not None
    return record


def failure_of(bench: Workbench, job_id: str) -> str:
    attempt_next(bench)
    record = read(bench, job_id)
    assert (record.status, record.attempt) == (Status.FAILED, 1)
    assert record.error is not None
    return record.error.code


def test_a_job_ends_with_a_manifest_that_names_each_object_with_its_digest(bench: Workbench, coins: bytes) -> None:
    job_id = upload(bench, coins, outputs=["coco", "png", "label_map", "overlay"])

    attempt_next(bench)

    record = read(bench, job_id)
    assert record.status is Status.SUCCEEDED
    assert record.result is not None
    manifest = Manifest.model_validate_json(bench.store.read(record.result.manifest_key))
    assert [file.name for file in manifest.files] == ["coco.json", "masks/0000.png", "label_map.png", "overlay.png"]
    for file in manifest.files:
        data = bench.store.read(file.key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    assert (record.result.masks, record.result.best_score) == (1, manifest.masks[0].predicted_iou)
    assert (manifest.image_width, manifest.image_height) == (384, 303)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("grey_12bit_in_16bit.tif", ImageValues(low=0, high=4095, stretched=True)),
        ("grey_bitspersample_12.tif", ImageValues(low=0, high=4095, stretched=False)),
        ("reference_grey.png", None),
    ],
)
def test_the_result_says_which_values_of_a_deep_image_were_shown(
    bench: Workbench, name: str, values: ImageValues | None
) -> None:
    job_id = upload(bench, (Path(__file__).parent / "images" / name).read_bytes(), outputs=["coco"])

    attempt_next(bench)

    record = read(bench, job_id)
    assert record.result is not None
    manifest = json.loads(bench.store.read(record.result.manifest_key))
    shown = json.loads(record.view("m", "http://api").model_dump_json())["result"]
    assert record.result.image_values == Manifest.model_validate(manifest).image_values == values
    # Readers of earlier versions refuse a field that they do not know: it is there only when it is needed.
    assert ("image_values" in manifest, "image_values" in shown) == (values is not None, values is not None)


def attempt_due(bench: Workbench, note: Callable[[JobError | None], None] = lambda _: None) -> None:
    """Attempt the next job, whatever its delay."""
    taking.pass_delays(bench.ledger._redis)
    attempt_next(bench, note)


def other_node(bench: Workbench, **settings: object) -> Workbench:
    return dataclasses.replace(bench, settings=bench.settings.model_copy(update={"node": "node-2", **settings}))


@pytest.fixture
def refused(bench: Workbench, store_fields: dict[str, str]) -> Workbench:
    """A node whose secret for the store is not valid."""
    stranger = Store(SharedSettings(**{**store_fields, "s3_secret_key": "rotated-away"}))
    return dataclasses.replace(bench, store=stranger)


def test_a_node_that_the_store_refuses_hands_the_job_to_another_uncharged(
    bench: Workbench, refused: Workbench, coins: bytes
) -> None:
    job_id, noted = upload(bench, coins), []

    for _ in range(bench.settings.max_attempts + 1):
        attempt_due(refused, noted.append)
        assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.QUEUED, 0)
    attempt_due(other_node(bench), noted.append)

    assert read(bench, job_id).status is Status.SUCCEEDED
    assert [error and error.code for error in noted] == ["store_misconfigured"] * 4 + [None]


def test_when_another_node_agrees_the_job_fails_and_the_service_is_blamed(
    bench: Workbench, refused: Workbench, coins: bytes
) -> None:
    job_id = upload(bench, coins)
    attempt_due(refused)

    attempt_due(other_node(refused))

    record = read(bench, job_id)
    assert (record.status, record.error and record.error.code) == (Status.FAILED, "store_misconfigured")


def test_an_only_node_is_believed_when_its_patience_ends(bench: Workbench, refused: Workbench, coins: bytes) -> None:
    impatient = dataclasses.replace(refused, settings=bench.settings.model_copy(update={"outage_patience_s": 0}))
    job_id = upload(bench, coins)

    statuses = []
    for _ in range(bench.settings.max_attempts):
        attempt_due(impatient)
        statuses.append(read(bench, job_id).status)

    assert statuses == [Status.QUEUED, Status.QUEUED, Status.FAILED]


def test_an_upload_that_one_node_does_not_find_is_looked_for_by_another(bench: Workbench, coins: bytes) -> None:
    job_id = create(bench, {"upload_id": "upl_" + "0" * 32})

    attempt_due(bench)
    assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.QUEUED, 0)
    attempt_due(other_node(bench))

    record = read(bench, job_id)
    assert (record.status, record.error and record.error.code) == (Status.FAILED, "image_not_found")


def test_a_retried_job_is_given_to_nodes_anew(bench: Workbench, coins: bytes) -> None:
    job_id = create(bench, {"upload_id": "upl_" + "0" * 32})
    attempt_due(bench)
    attempt_due(other_node(bench))
    bench.ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=10)

    attempt_due(bench)

    assert read(bench, job_id).status is Status.QUEUED


def test_a_spec_that_this_version_cannot_run_goes_to_another_node(bench: Workbench, coins: bytes) -> None:
    job_id = upload(bench, coins, outputs=["of_tomorrow"])

    attempt_due(bench)
    assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.QUEUED, 0)
    attempt_due(other_node(bench))

    record = read(bench, job_id)
    assert (record.status, record.error and record.error.code) == (Status.FAILED, "record_unreadable")


def test_a_full_disk_is_not_the_jobs_fault(bench: Workbench, coins: bytes) -> None:
    def full(*_: object) -> Segmented:
        raise OSError(errno.ENOSPC, "No space left on device")

    job_id = upload(bench, coins)

    attempt_due(dataclasses.replace(bench, segment=full))

    assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.QUEUED, 0)
    assert [attempt.outcome for attempt in bench.ledger.attempts(job_id)] == ["machine_broken"]


def test_an_image_is_read_from_a_bucket_that_is_allowed(
    bench: Workbench, coins: bytes, store_fields: dict[str, str]
) -> None:
    Store(SharedSettings(**{**store_fields, "bucket": PHOTOS_BUCKET})).put("a/coins.png", coins, "image/png")
    job_id = create(bench, {"s3_uri": f"s3://{PHOTOS_BUCKET}/a/coins.png"})

    attempt_next(bench)

    assert read(bench, job_id).status is Status.SUCCEEDED


def test_a_bucket_that_is_not_allowed_is_not_read(bench: Workbench) -> None:
    assert failure_of(bench, create(bench, {"s3_uri": "s3://maskfleet/uploads/bee/secret"})) == "bucket_not_allowed"


@pytest.mark.parametrize(
    "key", ["../maskfleet/uploads/bee/secret", "a/../../x", "a//x", "a\\..\\x", "a\x7f", "k" * 1100]
)
def test_a_key_that_leads_elsewhere_is_not_read(bench: Workbench, key: str) -> None:
    """The API refuses it; a record of an older version may still hold it."""
    uri = f"s3://{PHOTOS_BUCKET}/{key}"
    masked = [{"box": [20, 20, 80, 80], "mask_input": {"s3_uri": uri}}]

    assert failure_of(bench, create(bench, {"s3_uri": uri})) == "invalid_s3_uri"
    upload_id = bench.store.put_upload("ant", png((100, 100)), "image/png")
    assert failure_of(bench, create(bench, {"upload_id": upload_id}, mode="box", prompts=masked)) == "invalid_s3_uri"


def test_a_worker_reads_what_the_jobs_own_tenant_may_name(bench: Workbench) -> None:
    allowed = AllowedBucket.parse(f"bee:{PHOTOS_BUCKET}")
    apart = dataclasses.replace(bench, settings=bench.settings.model_copy(update={"allowed_buckets": (allowed,)}))

    assert failure_of(apart, create(bench, {"s3_uri": f"s3://{PHOTOS_BUCKET}/a/coins.png"})) == "bucket_not_allowed"


def test_a_missing_object_fails_the_job(bench: Workbench) -> None:
    assert failure_of(bench, create(bench, {"s3_uri": f"s3://{PHOTOS_BUCKET}/none"})) == "image_not_found"


def png(size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (90, 120, 90)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image_empty"),
        (b"plain text", "not_an_image"),
        (b"<!doctype html><html><body>log in</body></html>", "not_an_image"),
        (b"truncated", "image_truncated"),
        (b"bomb", "image_too_large"),
        (b"long", "image_file_too_large"),
        (b"outside", "box_outside_image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_image_fails_the_job_at_its_first_attempt(bench: Workbench, coins: bytes, data: bytes, code: str) -> None:
    data = {
        b"truncated": coins[: len(coins) // 2],
        b"bomb": png((2000, 1000)),
        b"long": bytes(3 * 2**20),
        b"outside": png((40, 40)),
    }.get(data, data)

    assert failure_of(bench, upload(bench, data)) == code


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_are_segmented(bench: Workbench, size: tuple[int, int]) -> None:
    job_id = upload(bench, png(size), mode="box", prompts=[{"box": [0, 0, *size]}])

    attempt_next(bench)

    assert read(bench, job_id).status is Status.SUCCEEDED


class ImageHost(BaseHTTPRequestHandler):
    """A web host with an image and with every way to fail to deliver one."""

    photo: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        answers = {
            "/photo": (200, self.photo),
            "/html.jpg": (200, b"<html>please log in</html>"),
            "/long": (200, bytes(3 * 2**20)),
            "/gone": (410, b""),
            "/secret": (403, b""),
            "/busy": (503, b""),
            "/loop": (302, b""),
            "/there": (302, b""),
            "/cut": (200, self.photo[:1000]),
        }
        status, body = answers.get(self.path, (404, b""))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/photo" if self.path == "/there" else self.path)
        self.send_header("Content-Length", str(len(self.photo if self.path == "/cut" else body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(coins: bytes) -> Iterator[str]:
    ImageHost.photo = coins
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHost)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/photo", "/there"])
def test_an_image_is_fetched_from_its_address(bench: Workbench, host: str, path: str) -> None:
    job_id = create(bench, {"url": host + path})

    attempt_next(bench)

    assert read(bench, job_id).status is Status.SUCCEEDED


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/none", "image_not_found"),
        ("/gone", "image_not_found"),
        ("/secret", "image_forbidden"),
        ("/html.jpg", "not_an_image"),
        ("/long", "image_file_too_large"),
        ("/loop", "url_redirects"),
    ],
)
def test_an_address_that_gives_no_image_fails_the_job(bench: Workbench, host: str, path: str, code: str) -> None:
    assert failure_of(bench, create(bench, {"url": host + path})) == code


def test_a_private_address_is_refused_unless_the_network_is_declared_closed(bench: Workbench, host: str) -> None:
    guarded = dataclasses.replace(bench, egress=egress_session(allow_private=False))

    assert failure_of(guarded, create(bench, {"url": host + "/photo"})) == "url_not_allowed"
    assert failure_of(guarded, create(bench, {"url": "https://127.0.0.1/photo"})) == "url_not_allowed"


@pytest.mark.parametrize("path", ["/busy", "/cut"])
def test_a_host_that_fails_is_asked_again_and_then_the_job_fails(
    bench: Workbench, host: str, path: str, redis_client: redis.Redis
) -> None:
    job_id = create(bench, {"url": host + path})

    seen = []
    for _ in range(bench.settings.max_attempts):
        attempt_next(bench)
        taking.pass_delays(redis_client)
        record = read(bench, job_id)
        seen.append((record.status, record.attempt, record.error.code if record.error else None))

    assert seen == [
        (Status.QUEUED, 1, None),
        (Status.QUEUED, 2, None),
        (Status.FAILED, 3, "source_unavailable"),
    ]


def nowhere(*_: object, **__: object) -> list[tuple[object, ...]]:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def blocked(bench: Workbench) -> Workbench:
    """A node whose network lets it reach no other host."""
    return dataclasses.replace(bench, egress=egress_session(allow_private=True, resolve=nowhere))


def announce(bench: Workbench, *nodes: str) -> None:
    for node in nodes:
        bench.worker_registry.announce(WorkerSeen(node, bench.settings.model_name, "cpu", 1, 0))


def test_a_node_that_reaches_no_host_hands_the_job_to_another_uncharged(
    bench: Workbench, blocked: Workbench, host: str
) -> None:
    announce(bench, bench.settings.node, "node-2")
    job_id, noted = create(bench, {"url": host + "/photo"}), []

    attempt_due(blocked, noted.append)
    assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.QUEUED, 0)
    attempt_due(blocked, noted.append)  # it is not given the job again
    attempt_due(other_node(bench), noted.append)

    assert read(bench, job_id).status is Status.SUCCEEDED
    assert [error and error.code for error in noted] == ["source_unreachable", None]


def test_a_host_that_no_node_reaches_has_the_usual_attempts_but_for_the_first(
    bench: Workbench, blocked: Workbench
) -> None:
    announce(bench, bench.settings.node, "node-2")
    job_id = create(bench, {"url": "http://down.example/photo"})

    seen = []
    attempt_due(blocked)
    for _ in range(bench.settings.max_attempts):
        attempt_due(other_node(blocked))
        record = read(bench, job_id)
        seen.append((record.status, record.attempt, record.error.code if record.error else None))

    assert seen == [
        (Status.QUEUED, 1, None),
        (Status.QUEUED, 2, None),
        (Status.FAILED, 3, "source_unavailable"),
    ]


def test_a_host_that_the_only_node_does_not_reach_has_the_usual_attempts(bench: Workbench, blocked: Workbench) -> None:
    announce(bench, bench.settings.node)
    job_id = create(bench, {"url": "http://down.example/photo"})

    for _ in range(bench.settings.max_attempts):
        attempt_due(blocked)

    record = read(bench, job_id)
    assert (record.status, record.error and record.error.code) == (Status.FAILED, "source_unavailable")


def test_a_node_with_another_bucket_than_the_api_writes_nothing_and_hands_the_job_back(
    bench: Workbench, coins: bytes, store_fields: dict[str, str]
) -> None:
    elsewhere = Store(SharedSettings(**{**store_fields, "bucket": PHOTOS_BUCKET}))
    before = {one.key for one in elsewhere.listed("")}
    upload_id = bench.store.put_upload("ant", coins, "image/png")
    elsewhere.put_upload("ant", coins, "image/png")  # there by chance: nothing but the bucket's name tells them apart
    job_id = create(bench, {"upload_id": upload_id}, bucket=bench.store.bucket)

    attempt_due(dataclasses.replace(bench, store=elsewhere))
    assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.QUEUED, 0)
    assert [attempt.outcome for attempt in bench.ledger.attempts(job_id)] == ["store_misconfigured"]
    attempt_due(other_node(bench))

    assert read(bench, job_id).status is Status.SUCCEEDED
    assert {one.key for one in elsewhere.listed("results/ant/")} <= before


@pytest.fixture
def without_store(bench: Workbench) -> Iterator[Workbench]:
    """The workbench, with the object store missing."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound and not listening: refuses
        down = SharedSettings(s3_endpoint=address, s3_access_key="a", s3_secret_key="b")
        yield dataclasses.replace(bench, store=Store(down))


def test_a_store_that_is_down_for_a_while_costs_a_job_no_attempt(
    bench: Workbench, without_store: Workbench, coins: bytes, redis_client: redis.Redis
) -> None:
    job_id = upload(bench, coins)

    for _ in range(bench.settings.max_attempts + 1):
        attempt_next(without_store)
        taking.pass_delays(redis_client)
        assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.QUEUED, 0)
    attempt_next(bench)

    assert (read(bench, job_id).status, read(bench, job_id).attempt) == (Status.SUCCEEDED, 1)


def test_a_store_that_stays_down_is_tried_again_and_then_the_job_fails(
    bench: Workbench, without_store: Workbench, redis_client: redis.Redis
) -> None:
    impatient = bench.settings.model_copy(update={"outage_patience_s": 0})
    cut_off = dataclasses.replace(without_store, settings=impatient)
    job_id = create(bench, {"upload_id": "upl_" + "0" * 32})

    statuses = []
    for _ in range(bench.settings.max_attempts):
        attempt_next(cut_off)
        taking.pass_delays(redis_client)
        statuses.append(read(bench, job_id).status)

    assert statuses == [Status.QUEUED, Status.QUEUED, Status.FAILED]
    assert read(bench, job_id).error.code == "store_unavailable"  # type: ignore[union-attr]


def test_a_running_job_is_canceled_between_two_batches(bench: Workbench, coins: bytes) -> None:
    job_id = upload(bench, coins, **SLOW)

    with ThreadPoolExecutor(1) as worker:
        running = worker.submit(attempt_next, bench)
        wait_until(lambda: (progress := read(bench, job_id).progress) and progress.stage is Stage.DECODING)
        assert bench.ledger.cancel(job_id, "ant") is Cancel.REQUESTED
        running.result(timeout=20)

    record = read(bench, job_id)
    assert (record.status, record.result) == (Status.CANCELED, None)


def test_a_job_that_runs_too_long_fails_as_such(bench: Workbench, coins: bytes) -> None:
    job_id = upload(bench, coins, **SLOW, run_timeout_s=1)

    assert failure_of(bench, job_id) == "timeout"


def test_a_bell_that_finds_nothing_is_dropped(bench: Workbench, coins: bytes) -> None:
    job_id = upload(bench, coins)
    assert attempt_next(bench)
    before = read(bench, job_id)

    assert not attempt_next(bench)

    assert read(bench, job_id) == before


def test_whoever_claims_a_job_wakes_others_for_the_next_ones(
    bench: Workbench, coins: bytes, redis_client: redis.Redis
) -> None:
    for _ in range(3):
        upload(bench, coins)
    lying = []

    for _ in range(3):
        redis_client.rpop(QUEUE)  # the bell that this worker hears
        attempt_next(bench)
        lying.append(redis_client.llen(QUEUE))

    assert lying == [2, 1, 0]


def test_a_worker_that_lost_its_lease_stops_and_changes_nothing(bench: Workbench) -> None:
    job_id = create(bench, {"upload_id": "upl_" + "0" * 32})
    record = taking.claim(bench.ledger, job_id, "node-1", lease_s=0.01, max_attempts=3)
    assert record is not None

    with Lease(bench.ledger, record, bench.settings) as lease:
        bench.ledger.finish_canceled(record)
        with pytest.raises(Fenced):
            wait_until(lambda: lease.check())

    assert read(bench, job_id).status is Status.CANCELED


def test_a_field_that_a_newer_version_recorded_is_ignored(bench: Workbench, coins: bytes) -> None:
    job_id = upload(bench, coins, of_a_later_version=True)

    attempt_next(bench)

    assert read(bench, job_id).status is Status.SUCCEEDED


def test_an_attempt_finds_the_result_of_one_that_died_before_it_could_say_so(bench: Workbench, coins: bytes) -> None:
    job_id = upload(bench, coins)
    unsaid = dataclasses.replace(bench, ledger=ForgetfulLedger(bench))
    attempt_next(unsaid)
    [manifest_key] = [key for key in keys_below(bench, f"results/ant/{job_id}/") if key.endswith("manifest.json")]
    written = bench.store.read(manifest_key)
    record = read(bench, job_id)
    bench.ledger.release(record, delay_s=0, charged=True)

    attempt_next(bench)

    record = read(bench, job_id)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 2)
    assert bench.store.read(manifest_key) == written


class ForgetfulLedger:
    """A ledger whose worker dies just before it reports the job as done."""

    def __init__(self, bench: Workbench) -> None:
        self._ledger = bench.ledger

    def __getattr__(self, name: str) -> object:
        return getattr(self._ledger, name)

    def succeed(self, record: JobRecord, *_: object, **__: object) -> Reply:
        return self._ledger.beat(record, ProgressView(stage=Stage.WRITING), lease_s=30)


def keys_below(bench: Workbench, prefix: str) -> list[str]:
    listing = bench.store._s3.list_objects_v2(Bucket=bench.store.bucket, Prefix=prefix)
    return [entry["Key"] for entry in listing["Contents"]]
