"""What a job's masks are in Python: arrays, tables, outlines and pictures."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import supervision as sv
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask

from maskfleet import Client, Job, JobFailed, JobView, Masks, MissingPackage, Refused
from maskfleet.client.outlines import polygons_with_holes
from maskfleet.client.packages import needed
from maskfleet.client.pictures import figure, png_of
from maskfleet.client.pixels import pixels_of_polygons, pixels_of_rle
from maskfleet.client.submission import bytes_of, one_object
from maskfleet.jobs.schema.inline import InlineMask, InlineMasks, Rle
from maskfleet.jobs.schema.record import Failure
from maskfleet.jobs.status import Status
from maskfleet.worker.masks.polygons import mask_polygons
from tests.maskfleet.scripted_server import Answer, ScriptedServer
from tests.maskfleet.test_transport import JOB
from tests.worker.test_polygons import SHAPES, pixels_of

Pixels = npt.NDArray[np.bool_]
SQUARE = pixels_of(["....", ".##.", ".##.", "...."])
SMALL = arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def counts_of(mask: Pixels) -> str:
    return str(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())


def inline(*masks: Pixels) -> InlineMasks:
    height, width = masks[0].shape if masks else (4, 4)
    return InlineMasks(
        form="rle",
        image_width=width,
        image_height=height,
        masks=tuple(
            InlineMask(
                segmentation=Rle(size=(height, width), counts=counts_of(mask)),
                area=int(mask.sum()),
                bbox=(1, 1, 2, 2),
                predicted_iou=0.5 + number / 10,
                stability_score=0.9,
                prompt=number,
            )
            for number, mask in enumerate(masks)
        ),
    )


def a_job(client: Client, **fields: object) -> Job:
    return Job.of(JOB.model_copy(update={"status": Status.SUCCEEDED, "ended_at": JOB.created_at, **fields}), client)


@pytest.fixture
def nowhere() -> Client:
    """A client whose server nobody asks."""
    return Client("http://127.0.0.1:1", "key", max_tries=1)


@pytest.fixture
def masks(nowhere: Client) -> Masks:
    return a_job(nowhere, inline=inline(SQUARE, ~SQUARE)).masks()


@given(mask=SMALL)
@settings(max_examples=150, deadline=None)
def test_runs_become_the_pixels_that_they_were_made_of(mask: Pixels) -> None:
    assert np.array_equal(pixels_of_rle(counts_of(mask), mask.shape), mask)  # type: ignore[arg-type]  # 2-D


def test_runs_of_a_large_mask_do_too() -> None:
    rng = np.random.default_rng(1)
    mask = np.repeat(np.repeat(rng.random((60, 80)) > 0.5, 50, axis=0), 50, axis=1)  # differences of many digits

    assert np.array_equal(pixels_of_rle(counts_of(mask), (3000, 4000)), mask)


@pytest.mark.parametrize("counts", ["", "abc", "5", "\x7f", "P"])
def test_what_are_no_runs_of_that_size_is_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="run-length encoding"):
        pixels_of_rle(counts, (3, 3))


@given(mask=SMALL)
@settings(max_examples=100, deadline=None)
def test_the_services_polygons_become_the_same_pixels(mask: Pixels) -> None:
    height, width = mask.shape
    polygons = mask_polygons(counts_of(mask), (height, width), 1000)

    assert polygons is not None
    assert np.array_equal(pixels_of_polygons(polygons, (height, width)), mask)


@given(mask=SMALL)
@settings(max_examples=200, deadline=None)
def test_outlines_hold_the_masks_pixels_and_no_others(mask: Pixels) -> None:
    assert_exact(mask)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_of_difficult_shapes(shape: str) -> None:
    assert_exact(pixels_of(SHAPES[shape]))


def assert_exact(mask: Pixels) -> None:
    """Compare with filling each ring by itself: its pixels are inside the outer ring and outside of the holes."""
    seen = np.zeros(mask.shape, bool)
    for outer, *holes in polygons_with_holes(mask):
        piece = filled(outer, mask.shape)
        for hole in holes:
            inside = filled(hole, mask.shape)
            assert (piece & inside).sum() == inside.sum()  # it lies within its own piece
            piece &= ~inside
        assert not (seen & piece).any()
        seen |= piece
        for ring in (outer, *holes):
            assert ring[0] == ring[-1]
            assert len(set(ring)) == len(ring) - 1  # no corner twice
            assert all((x0 == x1) != (y0 == y1) for (x0, y0), (x1, y1) in pairwise(ring))
    assert np.array_equal(seen, mask)


def filled(ring: list[tuple[int, int]], shape: tuple[int, ...]) -> Pixels:
    height, width = shape
    return pixels_of_polygons([[number for corner in ring[:-1] for number in corner]], (height, width))


def test_masks_are_a_sequence_with_scores(masks: Masks) -> None:
    first, second = masks

    assert (len(masks), first.number, second.prompt) == (2, 0, 1)
    assert masks.scores.tolist() == [0.5, 0.6]
    assert masks.boxes_xyxy.tolist() == [[1, 1, 3, 3]] * 2
    assert np.array_equal(np.asarray(first), SQUARE)
    assert np.asarray(first, dtype=np.uint8).sum() == first.area == 4
    assert np.array_equal(masks.array(), [SQUARE, ~SQUARE])
    assert np.array_equal(np.asarray(masks[1:]), [~SQUARE])
    assert repr(masks) == f"<2 masks on 4×4 pixels, of {JOB.id}>"
    with pytest.raises(ValueError, match="without a copy"):
        np.array(first, copy=False)


def test_masks_become_detections_of_supervision(masks: Masks) -> None:
    detections = masks.to_supervision()

    assert isinstance(detections, sv.Detections)
    assert np.array_equal(detections.mask, masks.array())
    assert detections.confidence is not None
    assert detections.confidence.tolist() == [0.5, 0.6]
    assert detections[detections.area > 4].data["area"].tolist() == [12]
    assert len(masks[:0].to_supervision()) == 0


def test_masks_become_a_table(masks: Masks) -> None:
    table = masks.to_pandas()

    assert isinstance(table, pd.DataFrame)
    assert table.loc[1, "area"] == 12
    assert table["prompt"].tolist() == [0, 1]
    assert table["candidate"].isna().all()
    assert masks[:0].to_pandas().columns.tolist() == table.columns.tolist()


def test_masks_become_geojson(masks: Masks) -> None:
    document = json.loads(json.dumps(masks.to_geojson()))

    inner, around = document["features"]
    assert inner["geometry"]["type"] == "MultiPolygon"
    [[ring]] = inner["geometry"]["coordinates"]
    assert {tuple(corner) for corner in ring} == {(1, 1), (3, 1), (3, 3), (1, 3)}
    [[_, hole]] = around["geometry"]["coordinates"]
    assert len(hole) == 5
    assert around["properties"]["predicted_iou"] == 0.6


def test_a_job_that_failed_has_no_masks_but_a_reason(nowhere: Client) -> None:
    failed = a_job(nowhere, status=Status.FAILED, error=Failure(code="image_invalid", detail="It is no image."))
    canceled = a_job(nowhere, status=Status.CANCELED)

    with pytest.raises(JobFailed, match="image_invalid: It is no image") as raised:
        failed.masks()
    with pytest.raises(JobFailed, match="job_canceled"):
        canceled.overlay()

    assert raised.value.job == failed


def test_a_job_without_masks_in_its_files_says_what_to_ask_for() -> None:
    manifest = json.dumps(
        {
            **{"job_id": JOB.id, "attempt": 1, "mode": "box", "model": "m", "created_at": "2026-01-02T00:00:00Z"},
            **{"image_width": 4, "image_height": 4, "masks": [], "files": [], "metrics": {}},
        }
    )
    with ScriptedServer(Answer(body=manifest.encode())) as server, Client(server.url, "key") as client:
        with pytest.raises(Refused, match=r"masks_not_written.*coco"):
            a_job(client).masks()
        with pytest.raises(Refused, match=r"overlay_not_written.*overlay"):
            a_job(client).overlay()


def test_a_job_equals_its_view_and_goes_to_another_process_as_one(nowhere: Client) -> None:
    job = Job.of(JOB, nowhere)

    assert job == JOB
    assert [JOB].index(job) == 0  # the other side is asked, too
    assert job != JOB.model_copy(update={"attempt": 7})
    assert job.model_dump_json() == JOB.model_dump_json()
    copied = pickle.loads(pickle.dumps(job))  # noqa: S301 - made here
    assert (type(copied), copied) == (JobView, JOB)
    assert copy.deepcopy(job) is job


def test_a_notebook_shows_a_job_in_words_that_are_escaped(nowhere: Client) -> None:
    job = a_job(nowhere, status=Status.FAILED, error=Failure(code="c", detail="<script>alert(1)</script>"))

    shown = job._repr_html_()

    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_notebook_shows_masks_without_a_server_too(masks: Masks) -> None:
    shown = masks._repr_html_()

    assert "2 masks on 4×4 pixels" in shown
    assert "<td>0.600</td>" in shown


def test_a_picture_for_a_notebook_is_small_and_its_caption_is_escaped() -> None:
    shown = figure(png_of(np.zeros((2000, 3000, 3), np.uint8)), "image/png", '"><script>')

    found = re.search(r'src="data:image/jpeg;base64,([^"]*)"', shown)
    assert found is not None
    assert Image.open(io.BytesIO(base64.b64decode(found[1]))).size == (768, 512)
    assert "<script>" not in shown


RED = np.tile(np.array([250, 10, 20], np.uint8), (6, 5, 1))


@pytest.mark.parametrize(
    ("picture", "mode"),
    [
        (RED, "RGB"),
        (RED[:, :, :1], "L"),
        (RED[::2, ::-1], "RGB"),
        (np.dstack([RED, RED[:, :, :1]]), "RGBA"),
        (RED[:, :, 0].astype(np.uint16) * 257, "I;16"),
        (RED[:, :, 0] > 0, "1"),
        (Image.fromarray(RED), "RGB"),
        (Image.fromarray(RED).convert("CMYK"), "RGB"),
        (Image.fromarray(RED).convert("P"), "P"),
    ],
)
def test_a_picture_in_memory_is_sent_with_its_pixels(picture: object, mode: str) -> None:
    sent = Image.open(io.BytesIO(bytes_of(picture)))  # type: ignore[arg-type]  # what mypy would refuse is refused below

    assert sent.mode == mode
    if isinstance(picture, np.ndarray):
        assert np.array_equal(np.asarray(sent), picture.squeeze())


def test_a_picture_is_sent_as_it_lies_in_memory_not_as_its_exif_would_turn_it() -> None:
    turned = Image.fromarray(RED)
    turned.getexif()[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=turned.getexif())

    sent = Image.open(io.BytesIO(bytes_of(Image.open(file))))

    assert sent.size == (5, 6)
    assert not sent.getexif()


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        (np.zeros((4, 4)), "floats from 0 to 1"),
        (np.zeros((4, 4, 2), np.uint8), "4 × 4 × 2 uint8 is no picture"),
        (np.zeros((0, 4), np.uint8), "no picture"),
        (np.zeros(4, np.uint8), "no picture"),
        (Image.new("F", (4, 4)), "does not say which value is white"),
        (io.StringIO("text"), "binary mode"),
        (7, "not int"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(photo: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        bytes_of(photo)  # type: ignore[arg-type]  # it is what is tested


def test_a_photo_may_be_a_path_bytes_or_an_open_file(coins: Path) -> None:
    data = coins.read_bytes()

    with coins.open("rb") as file:
        assert bytes_of(file) == data
    assert bytes_of(str(coins)) == bytes_of(coins) == bytes_of(data) == bytes_of(bytearray(data)) == data  # type: ignore[arg-type]  # works as well


def test_the_mode_follows_from_what_is_shown() -> None:
    assert one_object(None, None, None, {})["mode"] == "everything"
    assert one_object([(1, 2)], [1], None, {})["mode"] == "point"
    assert one_object([(1, 2)], [0], (1, 2, 3, 4), {})["mode"] == "box"
    assert one_object(None, None, None, {"prompts": [{"box": [1, 2, 3, 4]}]})["mode"] == "box"
    assert one_object(None, None, None, {"prompts": [{"points": [[1, 2]]}], "outputs": []})["outputs"] == []
    with pytest.raises(TypeError, match="either prompts"):
        one_object([(1, 2)], None, None, {"prompts": []})


def test_a_label_without_its_point_is_refused_before_anything_is_sent(nowhere: Client) -> None:
    with pytest.raises(Refused, match="invalid_spec"):
        nowhere.segment(b"image", points=[(1, 2)], labels=[1, 0])


def test_what_is_missing_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(MissingPackage, match=r"to_fiftyone\(\) needs the package fiftytwo.*pip install 'fiftytwo'"):
        needed("fiftytwo.sub", "fiftytwo", "to_fiftyone()")


#: Makes imports of these packages fail, as if they were not installed.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"numpy", "PIL", "pandas", "supervision", "httpx2"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from maskfleet import *
from maskfleet.jobs.schema.inline import InlineMasks
from maskfleet.jobs.schema.record import JobView
client = Client("http://127.0.0.1:1", "key")
job = Job.of(JobView.model_validate_json(sys.argv[1]), client)
masks = Masks.of_inline(job, InlineMasks.model_validate_json(sys.argv[2]))
print([mask.predicted_iou for mask in masks], masks._repr_html_()[:5])
for use in (masks.array, masks[0].array, masks.to_pandas, masks.to_supervision, masks.to_geojson, lambda: masks.scores,
            lambda: AsyncClient("http://127.0.0.1:1", "key")):
    try:
        use()
    except MissingPackage as error:
        print(error)
"""


def test_without_the_optional_packages_all_else_works_and_each_use_names_its_own() -> None:
    given = [JOB.model_dump_json(), inline(SQUARE).model_dump_json()]

    ran = subprocess.run([sys.executable, "-c", WITHOUT, *given], capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0, ran.stderr
    scores, *said = ran.stdout.splitlines()
    assert scores == "[0.5] <div>"
    installs = [line.rpartition("pip install ")[2] for line in said]
    arrays_ = "'maskfleet[arrays]'"
    assert installs == [*[arrays_] * 2, "'pandas'", "'supervision'", *[arrays_] * 2, "'maskfleet[async]'"]
