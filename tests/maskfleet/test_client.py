"""The Python client against a whole local stack."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskfleet import Client, Photo
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


@pytest.fixture
def photos(running_stack: StackLine) -> Store:
    """The bucket that jobs may name."""
    return Store(
        SharedSettings(
            s3_endpoint=running_stack.s3_endpoint,
            s3_access_key=running_stack.s3_access_key,  # type: ignore[arg-type]  # pydantic makes it a secret
            s3_secret_key=running_stack.s3_secret_key,  # type: ignore[arg-type]  # as above
            bucket=PHOTOS_BUCKET,
        )
    )


def test_a_jobs_candidates_are_filtered_with_other_thresholds(client: Client, coins: Path) -> None:
    grid = {"points_per_crop": 4, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.7}
    job = client.submit(photo=coins, mode="everything", params={**grid, "keep_candidates": True}, outputs=["coco"])
    full = client.submit(photo=coins, mode="everything", params={**grid, "crops_nms_thresh": 0.1}, outputs=["coco"])

    made = job.refilter(crops_nms_thresh=0.1)
    at_once = client.refilter(job.id, [], min_mask_area=10**6, inline="rle", held_s=20)

    assert (made.from_job, made.mode, made.status) == (job.id, "refilter", "succeeded")
    assert made.masks().scores.tolist() == full.masks().scores.tolist()
    assert len(job.masks()) > len(made.masks()) > 0
    assert len(at_once.wait().masks()) == 0
    with pytest.raises(Refused, match="threshold_not_kept"):
        job.refilter(pred_iou_thresh=0.6)
    with pytest.raises(Conflict, match="candidates_not_kept"):
        full.refilter(pred_iou_thresh=0.9)


def test_a_jobs_masks_are_written_in_further_formats_later(client: Client, coins: Path, tmp_path: Path) -> None:
    job = client.submit(photo=coins, **BOXES, outputs=["coco"])

    made = job.export(outputs=["svg", "coco", "overlay"], overlay_format="webp")
    at_once = job.export(["png"], wait=False, metadata={"order": "42"})
    manifest = made.fetch(tmp_path)

    assert (made.from_job, made.mode, made.status) == (job.id, "export", "succeeded")
    assert [file.name for file in manifest.files] == ["outlines.svg", "coco.json", "overlay.webp"]
    assert (tmp_path / "coco.json").read_bytes() == client.read(client.result(job.id).files[0])
    assert len(made.masks()) == 2
    assert made.overlay().format == "WEBP"
    assert (at_once.wait(timeout_s=60).status, at_once.metadata) == ("succeeded", {"order": "42"})
    with pytest.raises(Refused, match="logits_not_exported"):
        job.export(["logits"])
    with pytest.raises(Refused, match="invalid_spec"):
        client.export(job.id, [])
    with pytest.raises(NotFound):
        client.export(f"job_{'0' * 32}", ["svg"])


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


def test_the_examples_work_as_they_are_shown(
    running_stack: StackLine, client: Client, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repository / "docs" / "python.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    shown = (client_module.__doc__ or "").split("\n\n")[1:3]
    (tmp_path / "examples").symlink_to(repository / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"client": client}

    for example in examples:
        with_server = example.replace("http://127.0.0.1:8000", running_stack.api_url)
        exec(with_server.replace("mf_…", running_stack.api_key), names)  # noqa: S102 - the document's own code
        names["client"] = client  # the first example closes its own

    assert examples[0].strip() == "\n\n".join(shown)
    assert (tmp_path / "masks" / "manifest.json").is_file()
    assert names["pixels"].shape == names["every"].shape[1:] == (303, 384)
    assert names["picture"].size == (384, 303)
    assert names["outlines"]["features"][0]["geometry"]["coordinates"]
    assert (tmp_path / "results" / "0001" / "coco.json").is_file()


@pytest.mark.parametrize("form", ["path", "bytes", "array", "image", "open file"])
def test_a_photo_becomes_masks_in_one_call(client: Client, coins: Path, form: str) -> None:
    image = Image.open(coins)
    forms: dict[str, Photo] = {
        **{"path": str(coins), "bytes": coins.read_bytes(), "array": np.asarray(image), "image": image},
        "open file": io.BytesIO(coins.read_bytes()),
    }

    masks = client.segment(forms[form], box=(304, 14, 366, 73), timeout_s=120)

    (mask,) = masks
    assert mask.array().shape == (303, 384)
    assert mask.array().sum() == mask.area
    assert masks.job.result is not None
    assert masks.scores.tolist() == [masks.job.result.best_score]


def test_a_remembered_photo_is_sent_once_and_again_once_the_service_has_forgotten_it(
    client: Client, coins: Path
) -> None:
    def made_known(photo: Photo) -> int:
        """Segment a photo; return how often an image was made known for that."""
        before = {job.id for job in client.jobs()}
        (mask,) = client.segment(photo, box=(304, 14, 366, 73), remember=True, outputs=[], timeout_s=120)
        assert np.array_equal(mask.array(), expected.array())
        return sum(job.mode == "embed" and job.id not in before for job in client.jobs())

    (expected,) = client.segment(coins, box=(304, 14, 366, 73), timeout_s=120)
    first, as_bytes = made_known(coins), made_known(io.BytesIO(coins.read_bytes()))
    newest = next(job for job in client.jobs() if job.mode == "embed")
    client.delete_image(f"img_{newest.id.removeprefix('job_')}")
    forgotten, again = made_known(coins), made_known(coins)
    pixels, same_pixels = made_known(Image.open(coins)), made_known(Image.open(coins))

    assert (first, as_bytes, forgotten, again, pixels, same_pixels) == (1, 0, 1, 0, 1, 0)


@pytest.mark.parametrize("remember", [False, True])
def test_a_photo_and_a_known_image_are_not_taken_together(client: Client, coins: Path, remember: bool) -> None:
    with pytest.raises(TypeError, match="not both"):
        client.segment(coins, image_id="img_" + "0" * 32, remember=remember)


def test_masks_are_the_same_wherever_they_come_from(client: Client, coins: Path) -> None:
    jobs = [
        client.submit(photo=coins, outputs=outputs, **BOXES, **inline)
        for outputs, inline in (
            (["coco", "png"], JobFields()),
            ([], JobFields(inline="rle")),
            ([], JobFields(inline="polygons")),
        )
    ]

    from_coco, from_rle, from_polygons = (job.masks(timeout_s=120) for job in jobs)

    assert np.array_equal(from_coco.array(), from_rle.array())
    assert np.array_equal(from_coco.array(), from_polygons.array())
    assert from_coco.scores.tolist() == from_rle.scores.tolist()
    png = client.read(next(file for file in client.result(jobs[0].id).files if file.name == "masks/0001.png"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), from_coco[1].array())


def test_a_notebook_shows_the_picture_of_a_job_and_of_its_masks(client: Client, coins: Path) -> None:
    masks = client.segment(coins, timeout_s=120, **BOXES)

    for shown in (masks._repr_html_(), client.get(masks.job.id)._repr_html_()):
        found = re.search(r'src="data:image/jpeg;base64,([^"]+)"', shown)
        assert found is not None
        picture = Image.open(io.BytesIO(base64.b64decode(found[1])))
        assert picture.size == (384, 303)
        assert np.ptp(np.asarray(picture), axis=2).max() > 50  # the photograph is grey, the masks are coloured


def test_a_batch_is_awaited_fetched_and_fetched_again_where_it_was_broken_off(
    client: Client, coins: Path, tmp_path: Path
) -> None:
    no_image = b"\x89PNG\r\n\x1a\n" + b"\0" * 64
    sent = client.submit_batch([coins, no_image, coins], **BOXES)
    seen: list[int] = []

    ended = client.wait_batch(sent.id, timeout_s=120, on_progress=lambda batch: seen.append(batch.done))
    first = client.fetch_batch(sent.id, tmp_path)
    (tmp_path / "0002" / "manifest.json").unlink()
    kept = (tmp_path / "0000" / "coco.json").stat().st_mtime_ns
    again = client.fetch_batch(sent.id, tmp_path, on_job=lambda _, done, total: seen.append(done * 10 + total))

    assert (ended.status, ended.counts.succeeded, ended.counts.failed) == ("completed", 2, 1)
    assert seen[-4:] == [3, 13, 23, 33]
    assert [job.status for job in first] == [job.status for job in again] == ["succeeded", "failed", "succeeded"]
    assert first[1].error is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000", "0002"]
    assert (tmp_path / "0002" / "manifest.json").is_file()
    assert (tmp_path / "0000" / "coco.json").stat().st_mtime_ns == kept


def test_a_batch_from_a_prefix_is_fetched_as_the_files_made_of_it(
    client: Client, photos: Store, coins: Path, tmp_path: Path
) -> None:
    for number in range(2):
        photos.put(f"fetched/{number}.png", coins.read_bytes(), "image/png")
    sent = client.submit_batch_source(prefix=f"s3://{PHOTOS_BUCKET}/fetched/", **BOXES)

    client.wait_batch(sent.id, timeout_s=120)
    jobs = client.fetch_batch(sent.id, tmp_path)

    assert jobs == ()
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) == 4
    assert len((tmp_path / "outcomes.jsonl").read_text().splitlines()) == 2


def test_a_photo_keeps_its_name_however_it_is_given(client: Client, coins: Path) -> None:
    with coins.open("rb") as file:
        photos: list[Photo] = [coins, str(coins), file, Image.open(coins)]
        jobs = [client.submit(photo=photo, **BOXES) for photo in photos]

    assert [job.file_name for job in jobs] == ["coins.png"] * 4


def test_a_batch_is_canceled_as_far_as_it_has_not_ended(client: Client, busy_worker: JobView, coins: Path) -> None:
    sent = client.submit_batch([coins] * 3, priority="bulk", **BOXES)
    with pytest.raises(WaitTimeout, match="0 of 3 jobs"):
        client.wait_batch(sent.id, timeout_s=0)

    batch = client.cancel_batch(sent.id)
    again = client.cancel_batch(sent.id)

    assert batch.counts.canceled == again.counts.canceled == 3
    assert client.wait_batch(sent.id, timeout_s=30).status == "completed"


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


def test_a_ready_spec_on_an_object_of_the_store_is_carried_out(client: Client, photos: Store, coins: Path) -> None:
    photos.put("a/coins.png", coins.read_bytes(), "image/png")
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
