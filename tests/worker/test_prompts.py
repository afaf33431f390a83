"""Points and boxes, object by object; test_truth.py and test_families.py compare the masks with the library's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from maskfleet.jobs.errors import InvalidPrompt
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.sam.crops import Crop
from maskfleet.worker.sam.embedding import Frame
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import grid_batches
from maskfleet.worker.segment import segment
from tests import references
from tests.scenes import iou, plain_scene
from tests.worker.conftest import MAX_PIXELS, boxes, points

Example = Callable[[str], Photo]

#: Objects on coins.png of every shape that a prompt can have.
ONE_POINT: dict[str, Any] = {"points": [[58, 53]]}
TWO_SIDES: dict[str, Any] = {"points": [[118, 55.5], [140, 60], [150, 120]], "labels": [1, 1, 0]}
BOX: dict[str, Any] = {"box": [90, 30, 141.5, 76]}
BOX_AND_POINTS: dict[str, Any] = {"box": [20, 30, 70, 78], "points": [[45, 50], [75, 75]], "labels": [1, 0]}
ANOTHER_POINT: dict[str, Any] = {"points": [[263, 125]]}


def test_objects_of_different_shapes_in_one_job_are_each_as_alone(model: SegmentationModel, example: Example) -> None:
    # transformers fails on these (huggingface/transformers#32488), or pads points, which changes the masks.
    photo = example("coins.png")
    objects = [BOX_AND_POINTS, BOX, BOX_AND_POINTS, BOX]

    together = segment(photo, boxes(*objects), model).masks

    alone = [segment(photo, boxes(prompt), model).masks[0] for prompt in objects]
    assert [mask.prompt for mask in together] == [0, 1, 2, 3]
    _assert_same(together, alone)


def test_any_number_of_points_for_each_object_are_each_as_alone(model: SegmentationModel, example: Example) -> None:
    photo = example("coins.png")
    objects = [ONE_POINT, TWO_SIDES, ANOTHER_POINT, {"points": [[60, 60], [50, 50]]}, TWO_SIDES]

    together = segment(photo, points(*objects, multimask=True, points_per_batch=2), model)

    alone = [mask for prompt in objects for mask in segment(photo, points(prompt, multimask=True), model).masks]
    assert [(mask.prompt, mask.candidate) for mask in together.masks] == [(n, c) for n in range(5) for c in range(3)]
    assert [mask.point_coords for mask in together.masks[::3]] == [
        tuple(tuple(map(float, point)) for point in prompt["points"]) for prompt in objects
    ]
    assert together.metrics.batches == 3
    _assert_same(together.masks, alone)


def test_boxes_around_a_few_plain_shapes_find_them(model: SegmentationModel) -> None:
    overlaps = []

    for seed in range(6):
        scene = plain_scene(seed)
        photo = decode_photo(scene.png, MAX_PIXELS)
        found = segment(photo, boxes(*({"box": shape.box_xyxy} for shape in scene.shapes)), model).masks
        overlaps += [iou(decode_mask(mask), shape.mask) for mask, shape in zip(found, scene.shapes, strict=True)]

    assert np.mean(overlaps) >= 0.75
    assert min(overlaps) > 0.6


def test_a_click_in_the_middle_of_a_plain_shape_hits_it(model: SegmentationModel) -> None:
    scene = plain_scene(1)
    photo = decode_photo(scene.png, MAX_PIXELS)

    found = segment(photo, points(*({"points": [shape.middle_xy]} for shape in scene.shapes)), model).masks

    for mask, shape in zip(found, scene.shapes, strict=True):
        assert decode_mask(mask)[shape.middle_xy[1], shape.middle_xy[0]]
        assert iou(decode_mask(mask), shape.mask) > 0.5


def test_a_prompt_outside_the_photo_is_refused_before_anything_is_computed(
    model: SegmentationModel, example: Example
) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        segment(example("coins.png"), points(ONE_POINT, {"points": [[386, 10]]}), model)

    assert refused.value.code == "point_outside_image"
    assert [fault.pointer for fault in refused.value.faults] == ["/prompts/1/points/0"]


def test_a_box_that_a_detector_rounded_outside_is_segmented_as_the_box_at_the_edge(
    model: SegmentationModel, example: Example
) -> None:
    photo = example("coins.png")
    width, height = photo.size_wh

    outside = segment(photo, boxes({"box": [300, 10, width + 0.3, height + 1], "points": [[width + 0.5, 99]]}), model)
    at_the_edge = segment(photo, boxes({"box": [300, 10, width, height], "points": [[width, 99]]}), model)

    assert outside.masks == at_the_edge.masks


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 5000), (5000, 1)])
def test_a_box_around_all_of_an_odd_image_works(model: SegmentationModel, size_wh: tuple[int, int]) -> None:
    photo = Photo(np.zeros((size_wh[1], size_wh[0], 3), dtype=np.uint8), size_wh, "PNG")

    done = segment(photo, boxes({"box": [0, 0, *size_wh], "points": [[0, 0]]}), model)

    assert len(done.masks) == 1
    assert 0 <= done.masks[0].stability_score <= 1


def test_the_grid_is_in_the_middles_of_equal_cells() -> None:
    crop = Crop((10, 20, 110, 80), points_per_side=5)
    frame = Frame(original_hw=(60, 100), scaled_hw=(120, 200), padded_hw=(200, 200))

    batches = list(grid_batches(crop, frame, points_per_batch=7))

    middles = references.cell_middles(5, crop.size_wh)
    asked = [xy for batch in batches for (xy,) in batch.asked_xy]
    in_frame = [xy for batch in batches for xy in batch.points_xy[:, 0].tolist()]
    assert [len(batch.indices) for batch in batches] == [7, 7, 7, 4]
    assert np.allclose(asked, [(x + 10, y + 20) for x, y in middles], atol=1e-4)
    assert np.allclose(in_frame, [(2 * x, 2 * y) for x, y in middles], atol=1e-4)


def test_labels_that_are_left_out_are_all_on_the_object(model: SegmentationModel, example: Example) -> None:
    photo, spelt_out = example("coins.png"), {"points": [[58, 53], [60, 60]], "labels": [1, 1]}
    left_out = Prompt(points=((58, 53), (60, 60)))

    one = segment(photo, points(spelt_out), model).masks
    other = segment(photo, points(left_out.model_dump(exclude_none=True)), model).masks

    assert one == other


def _assert_same(together: tuple[Mask, ...], alone: list[Mask]) -> None:
    """Assert equality up to rounding: matrix products of another size sum in another order, about 1e-6 of a logit."""
    for one, other in zip(together, alone, strict=True):
        assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-4)
        assert (decode_mask(one) ^ decode_mask(other)).sum() <= 2
        assert one.point_coords == other.point_coords
