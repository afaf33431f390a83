"""Each output contains the masks that were found, in a format that its readers understand."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import ImageSource, Output, OverlayFormat
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.masks.containment import parents
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.output import archive, labels
from maskfleet.worker.output.formats import Artifact, make_artifacts
from maskfleet.worker.output.overlay import colour_of
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.segment import segment
from maskfleet.worker.segmentation import Segmentation
from tests import references
from tests.scenes import Scene, plain_scene
from tests.worker import overlay_reference
from tests.worker.conftest import MAX_PIXELS, boxes, everything, points


@dataclasses.dataclass
class Done:
    photo: Photo
    scene: Scene
    spec: Spec
    segmentation: Segmentation

    def artifacts(self) -> list[Artifact]:
        return list(make_artifacts(self.photo, self.spec, self.segmentation, "shapes.png"))

    def file(self, name: str) -> bytes:
        return {artifact.name: artifact.data for artifact in self.artifacts()}[name]

    def picture(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.file(name)))


@pytest.fixture(scope="module")
def job_of(model: SegmentationModel) -> Callable[..., Done]:
    """Return a job for the boxes, or centres, of a scene's shapes, with these outputs."""

    def done(*outputs: str, mode: str = "box", objects: int = 3, **params: Any) -> Done:
        scene = plain_scene(2, (320, 256))
        photo = decode_photo(scene.png, MAX_PIXELS)
        shapes = scene.shapes[:objects]
        spec: Spec
        if mode == "box":
            spec = boxes(*({"box": shape.box_xyxy} for shape in shapes), outputs=outputs, **params)
        else:
            spec = points(*({"points": [shape.middle_xy]} for shape in shapes), outputs=outputs, **params)
        return Done(photo, scene, spec, segment(photo, spec, model))

    return done


def test_coco_records_decode_to_the_same_masks(job_of: Callable[..., Done]) -> None:
    done = job_of("coco", multimask=True)

    document = json.loads(done.file("coco.json"))

    assert document["images"] == [{"id": 1, "file_name": "shapes.png", "width": 320, "height": 256}]
    assert document["categories"] == [{"id": 1, "name": "object", "supercategory": ""}]
    assert document["metrics"]["points"] == 3
    assert len(document["annotations"]) == 9
    for number, (record, mask) in enumerate(zip(document["annotations"], done.segmentation.masks, strict=True)):
        assert np.array_equal(coco_mask.decode(record["segmentation"]).astype(bool), decode_mask(mask))
        assert record["id"] == number + 1
        assert record["area"] == coco_mask.area(record["segmentation"])
        assert record["bbox"] == coco_mask.toBbox(record["segmentation"]).tolist()
        assert (record["prompt"], record["candidate"]) == divmod(number, 3)
        assert record["crop_box"] == [0, 0, 320, 256]
        assert {"predicted_iou", "stability_score", "point_coords"} <= record.keys()
    assert [record["parent_id"] for record in document["annotations"]] == [
        None if parent is None else parent + 1 for parent in parents(done.segmentation.masks)
    ]


def test_pycocotools_reads_the_file_as_a_dataset(job_of: Callable[..., Done], tmp_path: Path) -> None:
    done = job_of("coco", multimask=True)
    file = tmp_path / "coco.json"
    file.write_bytes(done.file("coco.json"))

    dataset = COCO(file)

    assert dataset.getCatIds() == [1]
    (image,) = dataset.loadImgs(dataset.getImgIds())
    annotations = dataset.loadAnns(dataset.getAnnIds(imgIds=[image["id"]], iscrowd=False))
    assert [annotation["id"] for annotation in annotations] == list(range(1, 10))
    for annotation, mask in zip(annotations, done.segmentation.masks, strict=True):
        assert np.array_equal(dataset.annToMask(annotation).astype(bool), decode_mask(mask))
        assert annotation["score"] == annotation["predicted_iou"] == mask.predicted_iou


def test_its_annotations_are_results_that_pycocotools_evaluates(job_of: Callable[..., Done], tmp_path: Path) -> None:
    done = job_of("coco")
    file = tmp_path / "coco.json"
    file.write_bytes(done.file("coco.json"))
    dataset = COCO(file)

    results = dataset.loadRes(json.loads(file.read_bytes())["annotations"])
    evaluation = COCOeval(dataset, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

    assert len(results.getAnnIds()) == 3
    assert evaluation.stats[0] == 1.0  # they are compared with themselves


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ({"s3_uri": "s3://photos/a/b c.jpg"}, "b c.jpg"),
        ({"url": "https://example.com/a/caf%C3%A9.jpg?size=1"}, "café.jpg"),
        ({"url": "https://example.com/"}, "image"),
        ({"url": "https://example.com/a%2f..%2f.."}, "image"),
        ({"url": "https://example.com/a%5c..%00"}, "image"),
        ({"upload_id": "upl_" + "0" * 32}, "upl_" + "0" * 32),
    ],
)
def test_an_images_name_is_that_of_its_source(job_of: Callable[..., Done], image: dict[str, str], name: str) -> None:
    done = job_of("coco")
    spec = done.spec.model_copy(update={"image": ImageSource(**image)})

    (artifact,) = make_artifacts(done.photo, spec, done.segmentation)

    assert json.loads(artifact.data)["images"][0]["file_name"] == name


def test_the_document_names_every_output_and_every_field(job_of: Callable[..., Done], repository: Path) -> None:
    document = (repository / "docs" / "outputs.md").read_text()
    done = job_of(*Output, multimask=True)
    coco = json.loads(done.file("coco.json"))

    (of_dataset, of_annotations) = re.findall(r"\n\| field \| \|\n\|[-| ]+\n((?:\|.+\n)+)", document)

    assert set(re.findall(r"^\| `(\w+)` \| `", document, re.MULTILINE)) == set(Output)
    assert {name for row in _first_cells(of_dataset) for name in row} == coco.keys()
    assert {name for row in _first_cells(of_annotations) for name in row} == coco["annotations"][0].keys()
    for artifact in done.artifacts():
        assert re.sub(r"\d+", "0000", artifact.name) in document


def _first_cells(rows: str) -> list[list[str]]:
    return [re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows.splitlines()]


def test_of_two_masks_of_one_area_the_later_is_on_top(job_of: Callable[..., Done]) -> None:
    done = job_of("label_map")
    mask = done.segmentation.masks[0]
    done.segmentation = dataclasses.replace(done.segmentation, masks=(mask, mask))

    assert set(np.unique(np.asarray(done.picture("label_map.png")))) == {0, 2}


def test_records_of_mode_everything_have_the_fields_of_sa_1b(model: SegmentationModel) -> None:
    scene = plain_scene(2, (320, 256))
    photo = decode_photo(scene.png, MAX_PIXELS)
    spec = everything(points_per_crop=4, pred_iou_thresh=0.5, stability_score_thresh=0.5)

    (artifact,) = make_artifacts(photo, spec, segment(photo, spec, model))

    of_coco = {"id", "image_id", "category_id", "iscrowd", "segmentation", "area", "bbox", "score", "parent_id"}
    fields = of_coco | {"predicted_iou", "stability_score", "point_coords", "crop_box"}
    records = json.loads(artifact.data)["annotations"]
    assert records
    assert all(set(record) == fields for record in records)


def test_there_is_one_png_of_one_bit_for_each_mask(job_of: Callable[..., Done]) -> None:
    done = job_of("png")

    pictures = [(artifact.name, Image.open(io.BytesIO(artifact.data))) for artifact in done.artifacts()]

    assert [name for name, _ in pictures] == ["masks/0000.png", "masks/0001.png", "masks/0002.png"]
    for (_, picture), mask in zip(pictures, done.segmentation.masks, strict=True):
        assert picture.mode == "1"
        assert np.array_equal(np.asarray(picture), decode_mask(mask))


def _files_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def test_the_archive_holds_the_pngs_as_they_are(job_of: Callable[..., Done]) -> None:
    done = job_of("png", "masks_zip")

    *files, made = done.artifacts()

    assert (made.name, made.content_type) == ("masks.zip", "application/zip")
    assert _files_of(made.data) == {file.name: file.data for file in files}
    with zipfile.ZipFile(io.BytesIO(made.data)) as opened:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in opened.infolist())


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (("masks_zip",), ["masks.zip"]),
        (("masks_zip", "coco", "png"), ["masks/0000.png", "masks.zip", "coco.json"]),
        (("png", "coco", "masks_zip", "png"), ["masks/0000.png", "masks.zip", "coco.json"]),
        (("png", "label_map"), ["masks/0000.png", "label_map.png"]),
    ],
)
def test_pngs_and_their_archive_are_written_together(
    job_of: Callable[..., Done], outputs: tuple[str, ...], names: list[str]
) -> None:
    done = job_of(*outputs, objects=1)

    assert [artifact.name for artifact in done.artifacts()] == names


def test_an_archive_is_the_same_bytes_each_time(job_of: Callable[..., Done]) -> None:
    done = job_of("masks_zip", "label_map", "overlay", "png")

    first, second = done.artifacts(), done.artifacts()

    assert first == second
    with zipfile.ZipFile(io.BytesIO(done.file("masks.zip"))) as opened:
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_archive_that_would_not_fit_into_memory_is_refused() -> None:
    large = Artifact("masks/0000.png", "image/png", bytes(archive.MAX_ARCHIVE_BYTES // 2))
    made = archive.Archive("masks.zip")
    made.add(large)

    with pytest.raises(InvalidRequest) as refused:
        made.add(dataclasses.replace(large, name="masks/0001.png"))

    assert refused.value.code == "archive_too_large"


def test_the_label_map_shows_the_smaller_mask_where_two_overlap(job_of: Callable[..., Done]) -> None:
    done = job_of("label_map", multimask=True)

    picture = done.picture("label_map.png")

    assert picture.mode == "I;16"
    assert np.array_equal(np.asarray(picture), references.labels([decode_mask(m) for m in done.segmentation.masks]))


def test_a_label_map_of_too_many_masks_is_refused(job_of: Callable[..., Done]) -> None:
    done = job_of("label_map")
    mask = done.segmentation.masks[0]
    done.segmentation = dataclasses.replace(done.segmentation, masks=(mask,) * (labels.MAX_LABELS + 1))

    with pytest.raises(InvalidRequest) as refused:
        done.artifacts()

    assert refused.value.code == "too_many_masks"


def test_the_overlay_tints_the_masks_and_leaves_the_rest(job_of: Callable[..., Done]) -> None:
    done = job_of("overlay", mode="point")

    picture = np.asarray(done.picture("overlay.png")).astype(int)

    assert picture.shape == done.photo.pixels.shape
    change = np.abs(picture - done.photo.pixels).max(axis=2)
    outside = ~np.any([decode_mask(mask) for mask in done.segmentation.masks], axis=0)
    shape = done.scene.shapes[0]
    x, y = shape.middle_xy
    assert change[:12].max() == 0  # above all shapes
    assert change[outside].mean() < 2
    assert min(picture[y, x]) > 180  # the plus on the point


def test_boxes_are_drawn_on_the_overlay(job_of: Callable[..., Done]) -> None:
    done = job_of("overlay")

    picture = np.asarray(done.picture("overlay.png"))

    for shape in done.scene.shapes[:3]:
        x0, y0, *_ = shape.box_xyxy
        assert picture[y0, x0].tolist() == [255, 255, 255]
        assert picture[y0 + 1, x0 + 1].tolist() != [255, 255, 255]


def test_the_candidates_of_one_object_are_shown_side_by_side(job_of: Callable[..., Done]) -> None:
    done = job_of("overlay", mode="point", objects=1, multimask=True)

    picture = done.picture("overlay.png")

    assert picture.width > 3 * done.photo.size_wh[0]
    assert done.photo.size_wh[1] < picture.height < 2 * done.photo.size_wh[1]


def test_the_overlay_of_a_large_photo_is_no_larger_than_a_screen(model: SegmentationModel) -> None:
    photo = Photo(np.full((900, 3000, 3), 90, dtype=np.uint8), (3000, 900), "PNG")
    spec = points({"points": [[1500, 450]]}, outputs=("overlay",))

    (artifact,) = make_artifacts(photo, spec, segment(photo, spec, model))

    assert Image.open(io.BytesIO(artifact.data)).size == (2048, 614)


@pytest.mark.parametrize(
    ("overlay_format", "name", "content_type"),
    [
        (OverlayFormat.PNG, "overlay.png", "image/png"),
        (OverlayFormat.WEBP, "overlay.webp", "image/webp"),
        (OverlayFormat.JPEG, "overlay.jpg", "image/jpeg"),
    ],
)
@pytest.mark.parametrize("multimask", [False, True])
def test_the_overlay_is_written_in_the_format_asked_for(
    job_of: Callable[..., Done], overlay_format: OverlayFormat, name: str, content_type: str, multimask: bool
) -> None:
    done = job_of("overlay", objects=1, multimask=multimask)
    png = np.asarray(done.picture("overlay.png")).astype(int)
    done.spec = done.spec.model_copy(update={"overlay_format": overlay_format})

    (artifact,) = done.artifacts()

    assert (artifact.name, artifact.content_type) == (name, content_type)
    picture = Image.open(io.BytesIO(artifact.data))
    assert picture.format == overlay_format.value.upper()
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture) - png).mean() < 4


@pytest.mark.parametrize("size_wh", [(1224, 816), (900, 5000), (3100, 2100)])
def test_the_overlay_is_that_of_full_size_masks(model: SegmentationModel, size_wh: tuple[int, int]) -> None:
    """Up to rounding: no value differs by more than 8 grey levels, and one in 2,000 by more than 2."""
    coins = Image.open("examples/coins.png").convert("RGB").resize(size_wh, Image.Resampling.BICUBIC)
    photo = Photo(np.asarray(coins), size_wh, "PNG")
    spec = everything(points_per_crop=8, pred_iou_thresh=0.6, stability_score_thresh=0.6)
    spec = spec.model_copy(update={"outputs": (Output.OVERLAY,)})
    segmentation = segment(photo, spec, model)

    (artifact,) = make_artifacts(photo, spec, segmentation)

    drawn = np.asarray(Image.open(io.BytesIO(artifact.data))).astype(int)
    difference = np.abs(
        drawn - overlay_reference.overlay(photo.pixels, [decode_mask(mask) for mask in segmentation.masks])
    )
    assert len(segmentation.masks) > 10
    assert difference.max() <= 8
    assert (difference > 2).mean() <= 1 / 2000


def test_no_job_waits_for_the_compiler(repository: Path) -> None:
    program = (
        "from tests.worker.output_memory import *\n"
        "from numba.core.dispatcher import Dispatcher\n"
        "from maskfleet.worker.masks import containment, rle\n"
        "from maskfleet.worker.output import blur, painting, png, scaling\n"
        "formats.warm_up(); rle.warm_up()\n"
        "kernels = {one for module in (containment, rle, blur, painting, png, scaling) for one in vars(module).values()"
        " if isinstance(one, Dispatcher)}\n"
        "compiled = {one: len(one.signatures) for one in kernels}\n"
        "masks = [disc((400, 2100), (900, 200), 150), disc((400, 2100), (9, 7), 20)]\n"
        "found = Segmentation((2100, 400), tuple(masks), NO_METRICS)\n"
        "photo = Photo(np.full((400, 2100, 3), 90, np.uint8), (2100, 400), 'JPEG')\n"
        "image = ImageSource(s3_uri='s3://photos/any.jpg')\n"
        "spec = EverythingJob(mode='everything', image=image, outputs=tuple(Output))\n"
        "assert len(list(formats.make_artifacts(photo, spec, found))) == 12\n"
        "assert len(kernels) > 8 and compiled == {one: len(one.signatures) for one in kernels}, compiled\n"
    )

    ran = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 3000), (40, 3)])
def test_every_output_works_on_images_of_odd_shapes(model: SegmentationModel, size_wh: tuple[int, int]) -> None:
    photo = Photo(np.full((size_wh[1], size_wh[0], 3), 90, dtype=np.uint8), size_wh, "PNG")
    outputs = tuple(output for output in Output if output is not Output.LOGITS)

    for multimask in (False, True):
        spec = boxes({"box": [0, 0, *size_wh], "points": [[0, 0]]}, outputs=outputs, multimask=multimask)
        made = list(make_artifacts(photo, spec, segment(photo, spec, model)))
        assert len(made) == (13 if multimask else 11)


def test_no_masks_make_valid_files(model: SegmentationModel, job_of: Callable[..., Done]) -> None:
    done = job_of("coco", "png", "masks_zip", "label_map", "overlay")
    done.segmentation = dataclasses.replace(done.segmentation, masks=())

    names = ["coco.json", "masks.zip", "label_map.png", "overlay.png"]
    assert [artifact.name for artifact in done.artifacts()] == names
    assert _files_of(done.file("masks.zip")) == {}
    assert json.loads(done.file("coco.json"))["annotations"] == []
    assert np.asarray(done.picture("label_map.png")).max() == 0


def test_colours_that_are_near_in_number_are_far_in_hue() -> None:
    colours = [colour_of(index) for index in range(12)]

    assert len(set(colours)) == 12
    for one, other in itertools.pairwise(colours):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 120
