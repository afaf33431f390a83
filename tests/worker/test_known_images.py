"""Jobs on images that earlier jobs have seen: what they no longer fetch, decode and encode, and do not believe."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image
from structlog.testing import capture_logs

from maskfleet.jobs.errors import StoreUnavailable
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.image import ImageFacts, content_name, source_name
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import EmbeddingOrigin, JobRecord
from maskfleet.jobs.schema.spec import ImageSource
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, embedding_key, source_key, upload_key
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.embeddings.cache import EmbeddingCache
from maskfleet.worker.embeddings.known_images import KnownImages
from maskfleet.worker.embeddings.later import LaterWrites
from maskfleet.worker.embeddings.revision import embedding_revision
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.segment_step import segment_and_format
from tests import taking
from tests.conftest import PHOTOS_BUCKET

POINT: dict[str, Any] = {"mode": "point", "prompts": [{"points": [[45, 62]]}]}
COMPUTED, MEMORY, STORE = EmbeddingOrigin.COMPUTED, EmbeddingOrigin.MEMORY, EmbeddingOrigin.STORE


@pytest.fixture
def picture(coins: bytes) -> bytes:
    """A photo that no test has seen."""
    return drawn_on(coins)


def drawn_on(data: bytes, size: tuple[int, int] = (192, 152)) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize(size)
    for x in range(8):
        image.putpixel((x, 0), tuple(random.randbytes(3)))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def run(
    bench: Workbench, image: dict[str, str], tenant: str = "ant", *, to_its_end_only: bool = False, **fields: Any
) -> JobRecord:
    """Run a job and what follows its end."""
    spec = json.dumps({**({} if "mode" in fields else POINT), **fields, "image": image})
    new = NewJobs(tenant=tenant, queue="sam.sam-demo.normal", specs_json=(spec,), start_deadline_s=60)
    job_id = bench.ledger.create(new, max_in_flight=100, idempotency_ttl_s=60).id
    attempt_next(bench)
    if not to_its_end_only:
        bench.later.wait()
    record = bench.ledger.read(job_id)
    assert record is not None
    return record


def uploaded(bench: Workbench, data: bytes, tenant: str = "ant") -> dict[str, str]:
    return {"upload_id": bench.store.put_upload(tenant, data, "image/png")}


def origin_of(record: JobRecord) -> EmbeddingOrigin:
    assert record.status is Status.SUCCEEDED, record.error
    assert record.result is not None
    return record.result.metrics.embedding


def failure_of(record: JobRecord) -> str | None:
    assert record.status is Status.FAILED
    return record.error.code if record.error else None


def masks_of(bench: Workbench, record: JobRecord) -> Any:  # Any: JSON
    """Return the annotations that a job wrote."""
    assert record.result is not None
    manifest = Manifest.model_validate_json(bench.store.read(record.result.manifest_key))
    [coco] = [file for file in manifest.files if file.name == "coco.json"]
    return json.loads(bench.store.read(coco.key))["annotations"]


def new_worker(bench: Workbench, model: SegmentationModel, *, max_bytes: int = 64 * 2**20) -> Workbench:
    """Return a worker that has only the store in common with the other one."""
    cache = EmbeddingCache(model, bench.store, max_bytes)
    segment = partial(segment_and_format, model, embeddings=cache)
    return dataclasses.replace(bench, segment=segment, known_images=KnownImages(bench.store), later=LaterWrites())


def test_a_second_click_on_an_upload_needs_neither_its_bytes_nor_the_encoder(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    image = uploaded(bench, picture)
    first = run(bench, image)
    bench.store.delete([upload_key("ant", image["upload_id"])])

    second = run(bench, image)
    elsewhere = run(new_worker(bench, model), image)

    assert [origin_of(job) for job in (first, second, elsewhere)] == [COMPUTED, MEMORY, STORE]
    assert masks_of(bench, first) == masks_of(bench, second) == masks_of(bench, elsewhere)


def test_a_manifest_says_of_a_known_image_what_it_says_of_a_new_one(
    bench: Workbench, model: SegmentationModel, repository: Any
) -> None:
    deep = (repository / "tests" / "worker" / "images" / "grey_12bit_in_16bit.tif").read_bytes()
    image = uploaded(bench, deep, tenant := f"ant-{random.randbytes(4).hex()}")
    place = {"mode": "point", "prompts": [{"points": [[1, 1]]}]}

    jobs = [run(one, image, tenant, **place) for one in (bench, bench, new_worker(bench, model))]

    assert [origin_of(job) for job in jobs] == [COMPUTED, MEMORY, STORE]
    manifests = [json.loads(bench.store.read(job.result.manifest_key)) for job in jobs if job.result]
    shown = [
        {name: one[name] for name in ("image_width", "image_height", "image_values", "masks")} for one in manifests
    ]
    assert shown[0] == shown[1] == shown[2]
    assert shown[0]["image_values"] == {"low": 0.0, "high": 4095.0, "stretched": True}


def test_the_log_says_where_the_embedding_came_from(bench: Workbench, picture: bytes) -> None:
    image = uploaded(bench, picture)

    with capture_logs() as logged:
        run(bench, image)
        run(bench, image)

    assert [line["embedding"] for line in logged if line["event"] == "job_succeeded"] == ["computed", "memory"]


def test_a_prompt_outside_a_known_image_is_refused_as_it_was(bench: Workbench, picture: bytes) -> None:
    image = uploaded(bench, picture)
    run(bench, image)

    outside = run(bench, image, mode="box", prompts=[{"box": [150, 20, 300, 80]}])

    assert failure_of(outside) == "box_outside_image"


def test_an_output_that_shows_the_image_has_its_pixels(bench: Workbench, picture: bytes) -> None:
    image = uploaded(bench, picture)
    plain = run(bench, image, outputs=["overlay"])

    known = run(bench, image, outputs=["overlay"])

    assert [origin_of(plain), origin_of(known)] == [COMPUTED, MEMORY]
    overlays = []
    for job in (plain, known):
        assert job.result is not None
        manifest = Manifest.model_validate_json(bench.store.read(job.result.manifest_key))
        overlays.append(bench.store.read(manifest.files[0].key))
    assert overlays[0] == overlays[1]


def test_mode_everything_uses_what_a_click_left_and_the_other_way_round(bench: Workbench, coins: bytes) -> None:
    clicked, covered = (uploaded(bench, drawn_on(coins)) for _ in range(2))
    grid = {"mode": "everything", "params": {"points_per_crop": 2}}

    origins = [
        origin_of(run(bench, clicked)),
        origin_of(run(bench, clicked, **grid)),
        origin_of(run(bench, covered, **grid)),
        origin_of(run(bench, covered)),
    ]

    assert origins == [COMPUTED, MEMORY, COMPUTED, MEMORY]


def test_crops_are_not_kept(bench: Workbench, picture: bytes) -> None:
    image = uploaded(bench, picture)
    run(bench, image, mode="everything", params={"points_per_crop": 2, "crops_n_layers": 1})

    assert origin_of(run(bench, image)) is COMPUTED


def test_bulk_jobs_write_no_embeddings_but_a_click_on_the_same_worker_does(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    image = uploaded(bench, picture)
    key = embedding_key("ant", embedding_revision(model), hashlib.sha256(picture).hexdigest())

    run(bench, image, priority="bulk")
    after_bulk = bench.store.head(key)
    click = run(bench, image)

    assert after_bulk is None
    assert origin_of(click) is MEMORY
    assert bench.store.head(key) is not None
    assert origin_of(run(new_worker(bench, model), image)) is STORE


def test_an_object_is_known_as_long_as_its_tag_is_the_same(
    bench: Workbench, model: SegmentationModel, store_fields: dict[str, str], coins: bytes
) -> None:
    photos, key = Store(SharedSettings(**{**store_fields, "bucket": PHOTOS_BUCKET})), f"a/{random.randbytes(8).hex()}"
    image = {"s3_uri": f"s3://{PHOTOS_BUCKET}/{key}"}
    one, other = drawn_on(coins), drawn_on(coins, (150, 100))
    photos.put(key, one, "image/png")

    first, second = run(bench, image), run(bench, image)
    photos.put(key, other, "image/png")
    changed = run(bench, image, prompts=[{"points": [[140, 90]]}], mode="point")
    photos.put(key, one, "image/png")
    back = [run(worker, image) for worker in (bench, new_worker(bench, model))]

    assert [origin_of(job) for job in (first, second, changed)] == [COMPUTED, MEMORY, COMPUTED]
    assert masks_of(bench, changed)[0]["segmentation"]["size"] == [100, 150]
    assert [origin_of(job) for job in back] == [MEMORY, STORE]
    assert masks_of(bench, back[0]) == masks_of(bench, first)


class ImageHost(BaseHTTPRequestHandler):
    """Serves one image, which may be replaced."""

    photo = b""
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.photo)))
        self.end_headers()
        self.wfile.write(self.photo)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(picture: bytes) -> Iterator[dict[str, str]]:
    ImageHost.photo, ImageHost.requests = picture, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHost)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"url": f"http://127.0.0.1:{server.server_port}/photo"}
    server.shutdown()
    server.server_close()


def test_a_url_is_fetched_each_time_and_known_by_its_bytes(
    bench: Workbench, model: SegmentationModel, host: dict[str, str], coins: bytes
) -> None:
    first, second, elsewhere = run(bench, host), run(bench, host), run(new_worker(bench, model), host)
    ImageHost.photo = drawn_on(coins)
    changed = run(bench, host)

    assert [origin_of(job) for job in (first, second, elsewhere, changed)] == [COMPUTED, MEMORY, STORE, COMPUTED]
    assert ImageHost.requests == 4


def test_the_same_bytes_from_another_source_are_known(bench: Workbench, host: dict[str, str], picture: bytes) -> None:
    run(bench, uploaded(bench, picture))

    assert origin_of(run(bench, host)) is MEMORY


def test_an_image_that_is_not_the_pinned_one_fails_the_job(
    bench: Workbench, host: dict[str, str], picture: bytes, coins: bytes
) -> None:
    pinned = {**host, "sha256": hashlib.sha256(picture).hexdigest()}

    before = run(bench, pinned)
    ImageHost.photo = drawn_on(coins)
    after = run(bench, pinned)

    assert before.status is Status.SUCCEEDED
    assert failure_of(after) == "image_changed"


def test_a_tenant_that_knows_anothers_sha256_gets_nothing_by_it(bench: Workbench, picture: bytes, coins: bytes) -> None:
    """Neither the image's embedding, nor whether anybody has it."""
    run(bench, uploaded(bench, picture))
    sha256 = hashlib.sha256(picture).hexdigest()

    guessed = run(bench, {**uploaded(bench, drawn_on(coins), "bee"), "sha256": sha256}, "bee")
    unheard_of = run(bench, {**uploaded(bench, drawn_on(coins), "bee"), "sha256": "0" * 64}, "bee")
    its_own = run(bench, {**uploaded(bench, picture, "bee"), "sha256": sha256}, "bee")

    assert failure_of(guessed) == failure_of(unheard_of) == "image_changed"
    assert guessed.error == unheard_of.error
    assert origin_of(its_own) is COMPUTED


def test_a_store_that_lost_the_embedding_costs_its_computing_and_no_more(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    image, key = (
        uploaded(bench, picture),
        embedding_key("ant", embedding_revision(model), hashlib.sha256(picture).hexdigest()),
    )
    first = run(bench, image)
    bench.store.delete([key])

    lost = run(new_worker(bench, model), image)

    assert origin_of(lost) is COMPUTED
    assert masks_of(bench, lost) == masks_of(bench, first)
    assert bench.store.head(key) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 4000,
        b'{"sha256": "no", "file_bytes": 1, "width": 1, "height": 1}',
        b'{"sha256": "' + b"0" * 64 + b'", "file_bytes": 1, "width": 0, "height": 1}',
        b'{"sha256": "' + b"0" * 64 + b'", "file_bytes": 1, "width": 1e400, "height": 1}',
        b'"' + b"x" * 100_000 + b'"',
    ],
    ids=lambda body: body[:20].decode(),
)
def test_facts_that_make_no_sense_are_found_out_again(
    bench: Workbench, model: SegmentationModel, picture: bytes, body: bytes
) -> None:
    image = uploaded(bench, picture)
    name = source_name(ImageSource(**image))
    assert name is not None
    bench.store.put(source_key("ant", name), body, "application/json")

    first = run(bench, image)

    assert origin_of(first) is COMPUTED
    assert origin_of(run(new_worker(bench, model), image)) is STORE


def test_facts_of_another_image_are_found_out_again_by_the_next_attempt(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    """Whoever may write to the bucket could also replace the upload; but a mistake must not last."""
    image = uploaded(bench, picture)
    name = source_name(ImageSource(**image))
    assert name is not None
    wrong = ImageFacts(sha256="0" * 64, file_bytes=9, width=192, height=152, georeference_read=True)
    bench.store.put(source_key("ant", name), wrong.model_dump_json().encode(), "application/json")

    first = run(bench, image)
    taking.pass_delays(bench.ledger._redis)
    attempt_next(bench)

    assert first.status is Status.QUEUED
    outcomes = [attempt.outcome for attempt in bench.ledger.attempts(first.id)]
    assert outcomes == ["source_unavailable", "succeeded"]


def test_a_known_image_that_has_become_too_large_is_refused(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    image = uploaded(bench, picture)
    run(bench, image)

    strict = bench.settings.model_copy(update={"max_image_pixels": 100})
    strict_bytes = bench.settings.model_copy(update={"max_image_bytes": 100})

    assert failure_of(run(dataclasses.replace(bench, settings=strict), image)) == "image_too_large"
    assert failure_of(run(dataclasses.replace(bench, settings=strict_bytes), image)) == "image_file_too_large"


def test_an_embed_job_writes_no_masks_and_says_what_the_image_is(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    image = uploaded(bench, picture)

    embedded = run(bench, image, mode="embed", to_its_end_only=True)
    click = run(new_worker(bench, model), image)

    assert origin_of(embedded) is COMPUTED
    assert embedded.result is not None
    assert (embedded.result.masks, embedded.result.best_score) == (0, None)
    content = embedded.result.image
    assert content is not None
    assert (content.sha256, content.width, content.height) == (hashlib.sha256(picture).hexdigest(), 192, 152)
    manifest = Manifest.model_validate_json(bench.store.read(embedded.result.manifest_key))
    assert (manifest.files, manifest.mode, manifest.image) == ((), "embed", content)
    assert origin_of(click) is STORE


def test_an_embed_job_makes_sure_that_other_workers_know_the_image_too(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    image = uploaded(bench, picture)
    run(bench, image, priority="bulk")

    embedded = run(bench, image, mode="embed", priority="bulk")

    assert origin_of(embedded) is MEMORY
    assert origin_of(run(new_worker(bench, model), image)) is STORE


def test_a_job_keeps_its_source_and_content_only_if_others_may_name_it(bench: Workbench, picture: bytes) -> None:
    image = uploaded(bench, picture)

    with_logits, without = run(bench, image, outputs=["logits"]), run(bench, image)

    assert with_logits.summary.source == ImageSource(**image)
    assert with_logits.result is not None
    assert with_logits.result.image is not None
    assert without.summary.source is None
    assert without.result is not None
    assert without.result.image is None


def test_without_a_store_for_embeddings_they_are_in_memory_alone(
    bench: Workbench, model: SegmentationModel, picture: bytes
) -> None:
    segment = partial(segment_and_format, model, embeddings=EmbeddingCache(model, None, 64 * 2**20))
    alone = dataclasses.replace(bench, segment=segment, known_images=KnownImages(None))
    image = uploaded(bench, picture, tenant := f"ant-{random.randbytes(4).hex()}")

    origins = [origin_of(run(alone, image, tenant)) for _ in range(2)]

    assert origins == [COMPUTED, MEMORY]
    assert list(bench.store.listed(f"embeddings/{tenant}/")) == []


def test_a_store_that_takes_no_embeddings_costs_no_job_its_result(
    bench: Workbench, model: SegmentationModel, picture: bytes, store_fields: dict[str, str]
) -> None:
    refused = Store(SharedSettings(**{**store_fields, "s3_secret_key": "rotated-away"}))
    segment = partial(segment_and_format, model, embeddings=EmbeddingCache(model, refused, 0))
    worker = dataclasses.replace(bench, segment=segment, known_images=KnownImages(refused))

    with capture_logs() as logged:
        job = run(worker, uploaded(bench, picture))

    assert origin_of(job) is COMPUTED
    failed = [line["code"] for line in logged if line["event"] == "image_not_kept"]
    assert failed == ["store_misconfigured"]


def test_later_writes_follow_one_another_and_too_many_are_left_out() -> None:
    later, goes_on, done = LaterWrites(max_waiting=2), threading.Event(), []

    def slow() -> None:
        goes_on.wait(10)
        done.append("slow")

    def broken() -> None:
        done.append("broken")
        raise StoreUnavailable

    with capture_logs() as logged:
        later.do(slow)
        later.do(broken)
        later.do(lambda: done.append("one too many"))
        goes_on.set()
        later.wait()
        later.do(lambda: done.append("next"))
        later.wait()

    assert done == ["slow", "broken", "next"]
    assert [line["code"] for line in logged if line["event"] == "image_not_kept"] == [
        "too_many_writes",
        "store_unavailable",
    ]


def test_facts_in_memory_are_bounded() -> None:
    known = KnownImages(None, max_images=2)
    facts = ImageFacts(sha256="0" * 64, file_bytes=1, width=1, height=1)
    for name in "abc":
        known.note("ant", content_name(name), facts)

    assert [known.find("ant", content_name(name)) is not None for name in "abc"] == [False, True, True]
