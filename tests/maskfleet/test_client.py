"""The Python client against a whole local stack."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskfleet import Client
from maskfleet.client import client as client_module
from maskfleet.client.errors import AuthenticationError, Conflict, NotFound, Refused, WaitTimeout
from maskfleet.client.submission import JobFields
from maskfleet.jobs.schema.events import BatchEvent
from maskfleet.jobs.schema.inline import Rle
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import BoxJob, ImageSource
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.process import StackLine
from maskfleet.stack.receiver import Receiver
from maskfleet.stack.settings import PHOTOS_BUCKET
from tests.waiting import wait_until

BOXES: JobFields = {"mode": "box", "prompts": [Prompt(box=(304, 14, 366, 73)), Prompt(box=(244, 94, 298, 146))]}
#: Long enough to be seen running, on any machine: 16,384 points.
LONG: JobFields = {"mode": "everything", "params": {"points_per_crop": 128}}


@pytest.fixture
def busy_worker(client: Client, coins: Path) -> Iterator[JobView]:
    """A job that keeps the stack's one worker busy during the test."""
    job = client.submit(photo=coins, priority="interactive", **LONG)
    yield job
    client.cancel(job.id)
    client.wait(job.id, timeout_s=60)


def test_a_click_is_answered_with_its_masks(client: Client, coins: Path) -> None:
    clicks: list[JobFields] = [{**BOXES, "outputs": [], "inline": form} for form in ("rle", "polygons")]

    by_rle, by_polygons = (client.submit(photo=coins, held_s=60, **fields).inline for fields in clicks)

    assert by_rle is not None
    assert by_polygons is not None
    for coded, outlined in zip(by_rle.masks, by_polygons.masks, strict=True):
        assert isinstance(coded.segmentation, Rle)
        assert isinstance(outlined.segmentation, tuple)
        assert coded.segmentation.size == (303, 384)
        corners = [zip(polygon[0::2], polygon[1::2], strict=True) for polygon in outlined.segmentation]
        assert sum(map(enclosed, map(list, corners))) == coded.area == outlined.area
        assert (coded.prompt, coded.predicted_iou) == (outlined.prompt, outlined.predicted_iou)


def enclosed(corners: list[tuple[int, int]]) -> float:
    """Return the area that a polygon encloses."""
    following = [*corners[1:], corners[0]]
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(corners, following, strict=True))) / 2


def test_a_photo_comes_back_as_checked_files_and_a_verified_webhook(
    client: Client, receiver: Receiver, coins: Path, tmp_path: Path
) -> None:
    seen: list[JobView] = []

    sent = client.submit(
        photo=coins,
        outputs=["coco", "png", "masks_zip", "label_map", "overlay"],
        webhook={"url": receiver.url},
        metadata={"order": "42"},
        **BOXES,
    )
    job = client.wait(sent.id, timeout_s=120, on_progress=seen.append)
    event = receiver.wait_for(sent.id, timeout_s=30)
    manifest = client.fetch(sent.id, tmp_path)

    assert (job.status, job.error) == ("succeeded", None)
    assert seen[-1] == job
    assert job.result is not None
    assert job.result.masks == len(manifest.masks) == 2
    assert (event.type, event.data.masks, event.data.metadata) == ("job.succeeded", 2, {"order": "42"})
    assert {file.name for file in manifest.files} >= {"coco.json", "label_map.png", "overlay.png"}
    assert sum(file.name.startswith("masks/") for file in manifest.files) == 2
    for file in manifest.files:
        assert hashlib.sha256((tmp_path / file.name).read_bytes()).hexdigest() == file.sha256


def test_the_example_works_as_it_is_shown(running_stack: StackLine, repository: Path, tmp_path: Path) -> None:
    shown = (client_module.__doc__ or "").partition("\n\n")[2].strip()
    page = re.search(r"```python\n(.*?)```", (repository / "docs" / "python.md").read_text(), flags=re.S)
    assert page is not None
    assert page[1].strip() == shown
    (tmp_path / "examples").symlink_to(repository / "examples")
    with_server = shown.replace("http://127.0.0.1:8000", running_stack.api_url).replace("mf_…", running_stack.api_key)

    ran = subprocess.run([sys.executable, "-c", with_server], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "masks" / "manifest.json").is_file()


def test_many_photos_are_one_batch_whose_end_is_told_once(client: Client, receiver: Receiver, coins: Path) -> None:
    sent = client.submit_batch([coins, coins.read_bytes()], webhook={"url": receiver.url}, **BOXES)
    jobs = [client.wait(job_id, timeout_s=120) for job_id in sent.job_ids]
    wait_until(lambda: any(isinstance(event, BatchEvent) for event in receiver.events), 30)
    batch = client.batch(sent.id)
    wait_until(lambda: client.deliveries(sent.id)[0].state == "delivered", 30)

    [event] = [event for event in receiver.events if isinstance(event, BatchEvent)]
    assert [(job.status, job.batch_id) for job in jobs] == [("succeeded", sent.id)] * 2
    assert (batch.status, batch.done, batch.counts.succeeded) == ("completed", 2, 2)
    assert (event.data.id, event.data.counts.succeeded) == (sent.id, 2)
    with pytest.raises(Refused, match="invalid_spec"):
        client.submit_batch([], **BOXES)


def test_a_click_on_an_image_that_is_known_encodes_nothing(client: Client, coins: Path) -> None:
    image = client.embed_image(coins, held_s=60, metadata={"order": "42"})
    client.wait(image.job_id, timeout_s=120)
    known = client.image(image.image_id)

    job = client.submit(image_id=image.image_id, mode="point", prompts=[{"points": [[45, 124]]}], outputs=["logits"])
    job = client.wait(job.id, timeout_s=120)
    refined = client.submit(
        mode="point", prompts=[{"points": [[45, 124]], "mask_input": {"job_id": job.id, "mask": 0}}]
    )
    refined = client.wait(refined.id, timeout_s=120)
    client.delete_image(image.image_id)

    assert (known.status, known.width, known.height, known.metadata) == ("succeeded", 384, 303, {"order": "42"})
    assert known.sha256 == hashlib.sha256(coins.read_bytes()).hexdigest()
    for ended in (job, refined):
        assert ended.status == "succeeded", ended.error
        assert ended.result is not None
        assert ended.result.metrics.embedding == "memory"
    with pytest.raises(NotFound, match="image_not_known"):
        client.image(image.image_id)
    with pytest.raises(Refused, match="image_not_known"):
        client.submit(image_id=image.image_id, **BOXES)


def test_an_image_is_named_once(client: Client, coins: Path) -> None:
    with pytest.raises(TypeError, match="not both"):
        client.submit(photo=coins, image_id="img_" + "0" * 32, **BOXES)
    with pytest.raises(Refused, match="invalid_spec"):
        client.submit(image_id="bee", **BOXES)
    with pytest.raises(Refused, match="invalid_spec"):
        client.embed_image(coins, start_deadline_s=0)


def test_the_same_idempotency_key_finds_the_same_job(client: Client, coins: Path) -> None:
    first = client.submit(photo=coins, idempotency_key="order-42", **BOXES)
    second = client.submit(photo=coins, idempotency_key="order-42", **BOXES)

    assert second.id == first.id


def test_an_idempotency_key_does_not_stand_for_another_job(client: Client, coins: Path) -> None:
    client.submit(photo=coins, idempotency_key="order-43", **BOXES)

    with pytest.raises(Refused, match="idempotency_key_reused"):
        client.submit(photo=coins, idempotency_key="order-43", mode="point", prompts=[{"points": [[45, 124]]}])


def test_a_ready_spec_on_an_object_of_the_store_is_carried_out(
    client: Client, running_stack: StackLine, coins: Path
) -> None:
    store = Store(
        SharedSettings(
            s3_endpoint=running_stack.s3_endpoint,
            s3_access_key=running_stack.s3_access_key,  # type: ignore[arg-type]  # pydantic makes it a secret
            s3_secret_key=running_stack.s3_secret_key,  # type: ignore[arg-type]  # as above
            bucket=PHOTOS_BUCKET,
        )
    )
    store.put("a/coins.png", coins.read_bytes(), "image/png")
    spec = BoxJob(
        mode="box",
        image=ImageSource(s3_uri=f"s3://{PHOTOS_BUCKET}/a/coins.png"),
        prompts=(Prompt(box=(304, 14, 366, 73)),),
    )

    job = client.wait(client.submit(spec).id, timeout_s=120)

    assert (job.status, job.error) == ("succeeded", None)


def test_a_large_photo_goes_straight_to_the_store(client: Client) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1800, 1700, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=0)
    assert len(file.getvalue()) > 8 * 2**20

    job = client.wait(
        client.submit(photo=file.getvalue(), mode="box", prompts=[{"box": [100, 100, 900, 900]}]).id, timeout_s=120
    )

    assert (job.status, job.error) == ("succeeded", None)


def test_what_only_the_server_can_see_is_refused_in_its_words(client: Client, coins: Path) -> None:
    with pytest.raises(Refused) as raised:
        client.submit(photo=coins, mode="point", prompts=[{"points": [[5000, 10]]}])

    assert (raised.value.code, raised.value.status) == ("point_outside_image", 422)


def test_a_queued_job_is_canceled_at_once_and_a_second_time_without_a_fault(
    client: Client, busy_worker: JobView, coins: Path
) -> None:
    job = client.submit(photo=coins, priority="bulk", **BOXES)

    first = client.cancel(job.id)
    again = client.cancel(job.id)

    assert (first.status, again.status) == ("canceled", "canceled")


def test_a_running_job_ends_soon_after_it_is_canceled(client: Client, coins: Path) -> None:
    job = client.submit(photo=coins, priority="interactive", **LONG)
    next(seen for seen in client.watch(job.id, timeout_s=120) if seen.status == "processing")

    client.cancel(job.id)

    assert client.wait(job.id, timeout_s=30).status == "canceled"


def test_a_wait_ends_at_its_deadline_and_the_job_goes_on(client: Client, busy_worker: JobView) -> None:
    with pytest.raises(WaitTimeout):
        client.wait(busy_worker.id, timeout_s=0.3)

    assert not client.get(busy_worker.id).status.ended


def test_there_is_no_result_before_the_end(client: Client, busy_worker: JobView) -> None:
    with pytest.raises(Conflict, match="job_not_ended"):
        client.result(busy_worker.id)


def test_an_ended_job_cannot_be_canceled(client: Client, coins: Path) -> None:
    job = client.wait(client.submit(photo=coins, **BOXES).id, timeout_s=120)

    with pytest.raises(Conflict, match="job_already_ended"):
        client.cancel(job.id)


def test_the_list_gives_every_job_once_over_its_pages_newest_first(
    client: Client, busy_worker: JobView, coins: Path
) -> None:
    sent = [client.submit(photo=coins, priority="bulk", **BOXES).id for _ in range(25)]
    for job_id in sent:
        client.cancel(job_id)

    listed = [job.id for job in client.jobs(status="canceled")]

    assert listed[:25] == sent[::-1]
    assert len(set(listed)) == len(listed)


def test_an_unknown_job_is_not_there(client: Client) -> None:
    with pytest.raises(NotFound, match="job_not_found"):
        client.get(f"job_{'0' * 32}")


def test_another_key_is_refused(running_stack: StackLine) -> None:
    with (
        Client(running_stack.api_url, "not the key") as client,
        pytest.raises(AuthenticationError, match="unknown_api_key"),
    ):
        client.models()


def test_the_models_are_named(client: Client) -> None:
    assert client.models() == ("sam-demo",)
