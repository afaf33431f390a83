"""GeoJSON, SVG, YOLO and the panoptic form hold the masks' pixels, and parent_id says which lies in which."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools.coco import COCO

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.spec import EverythingJob, ImageSource, Output
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.containment import SHARE, parents
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.masks.rle import encode_rle
from maskfleet.worker.output import labels, outlines
from maskfleet.worker.output.formats import make_artifacts
from maskfleet.worker.output.overlay import colour_of, opacity_of
from maskfleet.worker.segmentation import Segmentation
from tests import references
from tests.worker.test_painting import Bools, mask_of, segmentation_of

#: A ring with a piece in its hole, a piece apart that touches the ring's corner, and nothing.
RINGS = ["#######...", "#.....#...", "#.###.#...", "#.#.#.#...", "#.###.#...", "#.....#...", "#######...", ".......##."]


def drawn(rows: list[str]) -> Bools:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def masks_of_every_kind() -> Segmentation:
    ring = drawn(RINGS)
    return segmentation_of(ring, np.zeros_like(ring), np.ones_like(ring), ring & (np.arange(10) == 4))


def file_of(segmentation: Segmentation, output: str, name: str) -> bytes:
    spec = EverythingJob.model_validate(
        {"mode": "everything", "image": {"url": "https://a.example/p"}, "outputs": [output]}
    )
    photo = Photo(np.zeros((*segmentation.size_wh[::-1], 3), np.uint8), segmentation.size_wh, "PNG")
    return {one.name: one.data for one in make_artifacts(photo, spec, segmentation, "photo.png")}[name]


def tree_of(segmentation: Segmentation) -> ET.Element:
    return ET.fromstring(file_of(segmentation, "svg", "outlines.svg"))  # noqa: S314 (our own file)


def filled(rings: list[npt.NDArray[np.float64]], shape: tuple[int, int]) -> Bools:
    """Fill rings (N, 2) by the even-odd rule: inside are pixels with an odd number of edges to their left."""
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    inside = np.zeros(shape, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crossed = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
                inside ^= crossed & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x)
    return inside


def test_features_have_the_masks_pixels_with_holes_as_rings() -> None:
    found = masks_of_every_kind()

    document = json.loads(file_of(found, "geojson", "outlines.geojson"))

    assert document["type"] == "FeatureCollection"
    assert document["image"] == {"file_name": "photo.png", "width": 10, "height": 8}
    kinds = []
    for number, (feature, mask) in enumerate(zip(document["features"], found.masks, strict=True), 1):
        assert (feature["type"], feature["id"]) == ("Feature", number)
        assert feature["properties"] == {
            "area": mask.area,
            "bbox": list(mask.bbox_xywh),
            "predicted_iou": 0.9,
            "stability_score": 0.9,
            "prompt": None,
            "candidate": None,
        }
        geometry = feature["geometry"] or {"type": None, "coordinates": []}
        kinds.append(geometry["type"])
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        rings = [ring for polygon in polygons for ring in polygon]
        assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in rings)
        assert np.array_equal(filled([np.array(ring[:-1], float) for ring in rings], mask.size_hw), decode_mask(mask))
    assert kinds == ["MultiPolygon", None, "Polygon", "MultiPolygon"]
    assert [len(polygon) for polygon in document["features"][0]["geometry"]["coordinates"]] == [2, 2, 1]


def test_a_drawing_has_a_path_for_each_mask_in_the_overlays_colours() -> None:
    found = masks_of_every_kind()

    svg = tree_of(found)

    assert (svg.get("width"), svg.get("height"), svg.get("viewBox")) == ("10", "8", "0 0 10 8")
    (group,) = svg
    assert group.get("fill-rule") == "evenodd"
    assert [path.get("id") for path in group] == ["mask-3", "mask-1", "mask-4", "mask-2"]  # larger ones first
    for path in group:
        number = int((path.get("id") or "").removeprefix("mask-"))
        assert path.get("fill") == "#{:02x}{:02x}{:02x}".format(*colour_of(number - 1))
        mask = found.masks[number - 1]
        assert path.get("fill-opacity") == f"{opacity_of(mask):.3f}"
        assert np.array_equal(filled(_rings_of(path.get("d") or ""), mask.size_hw), decode_mask(mask))


def _rings_of(path: str) -> list[npt.NDArray[np.float64]]:
    rings = []
    for ring in re.findall(r"M(\d+) (\d+)((?:[hv]-?\d+)+)z", path):
        corners = [np.array([int(ring[0]), int(ring[1])], float)]
        for direction, length in re.findall(r"([hv])(-?\d+)", ring[2]):
            corners.append(corners[-1] + np.array([int(length), 0] if direction == "h" else [0, int(length)]))
        rings.append(np.array(corners))
    return rings


def test_a_line_for_each_mask_has_its_class_and_polygon() -> None:
    found = masks_of_every_kind()

    lines = file_of(found, "yolo", "yolo.txt").decode().splitlines()

    seen = [mask for mask in found.masks if mask.area]
    for line, mask in zip(lines, seen, strict=True):
        kind, *shares = line.split(" ")
        corners = np.array([float(share) for share in shares]).reshape(-1, 2)
        assert kind == "0"
        assert corners.min() >= 0
        assert corners.max() <= 1
        assert np.array_equal(filled([(corners * [10, 8]).round()], mask.size_hw), decode_mask(mask))


@settings(max_examples=60, deadline=None)
@given(pixels=arrays.arrays(bool, (7, 9), elements=st.booleans()))
def test_pieces_that_are_joined_hold_the_same_pixels(pixels: Bools) -> None:
    found = segmentation_of(pixels)

    text = outlines.yolo_file(found).data.decode()

    corners = np.array([float(share) for share in text.split()[1:]]).reshape(-1, 2)
    assert np.array_equal(filled([(corners * [9, 7]).round()], (7, 9)), pixels)


def test_each_pixel_has_one_segment_the_smallest_of_its_masks() -> None:
    found = masks_of_every_kind()
    hidden = dataclasses.replace(found, masks=(found.masks[0], *found.masks))  # the first one is not seen

    picture = np.asarray(Image.open(io.BytesIO(file_of(hidden, "panoptic", "panoptic.png")))).astype(int)
    document = json.loads(file_of(hidden, "panoptic", "panoptic.json"))

    ids = picture @ [1, 256, 65536]  # as panopticapi.utils.rgb2id
    assert np.array_equal(ids, references.labels([decode_mask(mask) for mask in hidden.masks]))
    (annotation,) = document["annotations"]
    assert document["images"] == [{"id": 1, "file_name": "photo.png", "width": 10, "height": 8}]
    assert document["categories"] == [{"id": 1, "name": "object", "supercategory": "", "isthing": 1}]
    assert (annotation["image_id"], annotation["file_name"]) == (1, "panoptic.png")
    assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids)) - {0} == {2, 4, 5}
    for segment in annotation["segments_info"]:
        shown = ids == segment["id"]
        x0, y0, x1, y1 = references.bounding_box(shown) or (0, 0, 0, 0)
        assert (segment["area"], segment["bbox"]) == (shown.sum(), [x0, y0, x1 - x0, y1 - y0])
        assert (segment["category_id"], segment["iscrowd"]) == (1, 0)


def test_ids_above_255_and_rows_of_several_strips_are_exact() -> None:
    pixels = [np.zeros((200, 3), bool) for _ in range(400)]
    for number, one in enumerate(pixels):
        one[number % 200, number % 3] = True
    found = segmentation_of(*pixels)

    picture = np.asarray(Image.open(io.BytesIO(file_of(found, "panoptic", "panoptic.png")))).astype(int)

    assert np.array_equal(picture @ [1, 256, 65536], references.labels(pixels))


def test_label_map_and_panoptic_are_written_together() -> None:
    found = masks_of_every_kind()
    spec = EverythingJob(
        mode="everything",
        image=ImageSource(url="https://a.example/p"),
        outputs=(Output.PANOPTIC, Output.COCO, Output.LABEL_MAP),
    )
    photo = Photo(np.zeros((8, 10, 3), np.uint8), (10, 8), "PNG")

    names = [file.name for file in make_artifacts(photo, spec, found)]

    assert names == ["label_map.png", "panoptic.png", "panoptic.json", "coco.json"]


@pytest.mark.parametrize("output", ["geojson", "svg", "yolo"])
def test_a_mask_of_too_many_runs_is_refused(output: str) -> None:
    height, width = 1000, 1000
    stripes = encode_rle(np.arange(1, height * width), (height, width))
    mask = dataclasses.replace(masks_of_every_kind().masks[0], counts=stripes, size_hw=(height, width))
    found = dataclasses.replace(masks_of_every_kind(), size_wh=(width, height), masks=(mask,))

    with pytest.raises(InvalidRequest) as refused:
        file_of(found, output, "any")

    assert refused.value.code == "outlines_too_large"
    assert "mask 1 is too ragged" in refused.value.detail


def test_files_without_masks_are_valid() -> None:
    none = dataclasses.replace(masks_of_every_kind(), masks=())

    assert json.loads(file_of(none, "geojson", "outlines.geojson"))["features"] == []
    assert len(tree_of(none)[0]) == 0
    assert file_of(none, "yolo", "yolo.txt") == b""
    assert json.loads(file_of(none, "panoptic", "panoptic.json"))["annotations"][0]["segments_info"] == []
    assert labels.panoptic_png(labels.painted_labels(none))


def test_a_parent_is_the_smallest_larger_mask_that_has_nearly_all_of_it() -> None:
    face, eye, pupil, hat = (np.zeros((40, 40), bool) for _ in range(4))
    face[10:30, 10:30] = True
    eye[12:18, 12:18] = True
    pupil[14:16, 14:16] = True
    hat[5:15, 10:30] = True  # half of it is above the face
    everything = np.ones((40, 40), bool)

    assert parents([mask_of(one) for one in (pupil, face, hat, everything, eye)]) == [4, 3, 3, None, 1]


def test_masks_of_the_same_area_and_empty_masks_have_no_part_in_each_other() -> None:
    square, nothing = np.ones((4, 4), bool), np.zeros((4, 4), bool)

    assert parents([mask_of(one) for one in (square, square, nothing)]) == [None, None, None]
    assert parents([]) == []


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_parents_are_those_that_the_pixels_say(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    masks = []
    for _ in range(data.draw(st.integers(1, 8))):
        one = random.random((12, 15)) < random.choice([0, 0.02])
        top, bottom, left, right = (*sorted(random.integers(0, 13, 2)), *sorted(random.integers(0, 16, 2)))
        one[top:bottom, left:right] = True
        masks.append(one)

    found = parents([mask_of(one) for one in masks])

    for one, parent in zip(masks, found, strict=True):
        larger = [
            number
            for number, other in enumerate(masks)
            if one.any() and other.sum() > one.sum() and (one & ~other).sum() <= int((1 - SHARE) * one.sum())
        ]
        assert parent == min(larger, key=lambda number: masks[number].sum(), default=None)


def test_coco_polygons_are_the_same_dataset_with_the_masks_pixels(tmp_path: Path) -> None:
    found = masks_of_every_kind()
    file = tmp_path / "coco_polygons.json"
    file.write_bytes(file_of(found, "coco_polygons", "coco_polygons.json"))
    by_runs = json.loads(file_of(found, "coco", "coco.json"))

    dataset = COCO(file)

    assert [annotation["id"] for annotation in dataset.anns.values()] == [1, 3, 4]  # the second has no pixel
    for annotation in dataset.anns.values():
        of_runs = by_runs["annotations"][annotation["id"] - 1]
        assert np.array_equal(
            dataset.annToMask(annotation).astype(bool), decode_mask(found.masks[annotation["id"] - 1])
        )
        assert {**annotation, "segmentation": None} == {**of_runs, "segmentation": None}
    assert {**dataset.dataset, "annotations": None} == {**by_runs, "annotations": None}
