"""Mode everything equals transformers' own pipeline; test_truth.py covers images of other sizes and shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskfleet.jobs.schema.spec import EverythingParams
from maskfleet.jobs.status import Stage
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.sam.model import SegmentationModel, batch_that_fits
from maskfleet.worker.segment import segment
from tests.worker.conftest import everything
from tests.worker.truth import OURS

Example = Callable[[str], Photo]

#: Chosen so that masks are found on each: the demo checkpoint's scores are low on photographs.
LOOSE = {"pred_iou_thresh": 0.75, "stability_score_thresh": 0.8}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        pytest.param("coins.png", {}, id="the defaults"),
        pytest.param("coins.png", {"points_per_crop": 8, "crops_n_layers": 1}, id="one layer of crops"),
        pytest.param(
            "coins.png",
            {"points_per_crop": 4, "crops_n_layers": 2, "crop_overlap_ratio": 0.2, "crops_nms_thresh": 0.5, **LOOSE},
            id="two layers of crops",
        ),
        pytest.param(
            "coffee.jpg",
            {
                "points_per_crop": 6,
                "crops_n_layers": 1,
                "pred_iou_thresh": 0.6,
                "mask_threshold": 0.7,
                "stability_score_offset": 2.5,
            },
            id="crops and another cut",
        ),
    ],
)
def test_the_masks_are_those_of_the_pipeline(
    model: SegmentationModel,
    library_pipeline: Any,
    repository: Path,
    example: Example,
    name: str,
    params: dict[str, Any],
) -> None:
    spec = everything(**params, crops_suppression="library")
    theirs = library_pipeline(
        Image.open(repository / "examples" / name),
        output_rle_mask=True,
        output_bboxes_mask=True,
        **spec.params.model_dump(exclude=OURS),
    )

    ours = segment(example(name), spec, model).masks

    assert len(theirs["rle_mask"]) > 0
    # Our decoder sums in a different order, which changes logits in their last digits, and a pixel here and there.
    different = [_different_pixels(mask, rle) for mask, rle in zip(ours, theirs["rle_mask"], strict=True)]
    print(f"{sum(different)} pixels differ in {len(ours)} masks")  # noqa: T201
    assert max(different) <= 5
    assert [mask.predicted_iou for mask in ours] == pytest.approx(theirs["scores"].tolist(), abs=1e-5)
    boxes = zip(ours, theirs["bounding_boxes"].tolist(), different, strict=True)
    assert all(_first_and_last_pixel(mask) == box for mask, box, pixels in boxes if not pixels)


def test_each_mask_names_the_grid_point_it_grew_from(model: SegmentationModel, example: Example) -> None:
    photo = example("coins.png")

    found = segment(photo, everything(points_per_crop=4, **LOOSE), model).masks

    width, height = photo.size_wh
    grid = {(width * (column + 0.5) / 4, height * (row + 0.5) / 4) for row in range(4) for column in range(4)}
    for mask in found:
        assert len(mask.point_coords) == 1
        assert min(abs(x - mask.point_coords[0][0]) + abs(y - mask.point_coords[0][1]) for x, y in grid) < 1e-3
        assert mask.crop_box_xywh == (0, 0, width, height)
        assert (mask.prompt, mask.candidate) == (None, None)


def test_a_finer_grid_for_the_whole_than_for_its_crops_works(model: SegmentationModel, example: Example) -> None:
    # transformers stacks the crops' grids into one tensor and fails: huggingface/transformers#35530
    photo = example("coins.png")
    spec = everything(points_per_crop=8, crops_n_layers=2, crop_n_points_downscale_factor=2, **LOOSE)

    done = segment(photo, spec, model)

    assert done.metrics.points == 8**2 + 4 * 4**2 + 16 * 2**2
    assert done.metrics.crops == 1 + 4 + 16
    inside = [mask for mask in done.masks if mask.crop_box_xywh != (0, 0, *photo.size_wh)]
    for mask in inside:
        (x, y), (left, top, across, down) = mask.point_coords[0], mask.crop_box_xywh
        assert left <= x <= left + across
        assert top <= y <= top + down


def test_smaller_crops_are_preferred_as_in_the_original(model: SegmentationModel, example: Example) -> None:
    # transformers suppresses once over all crops, by predicted IoU
    photo, params = example("coins.png"), {"points_per_crop": 8, "crops_n_layers": 1, **LOOSE}

    original = segment(photo, everything(**params), model).masks
    library = segment(photo, everything(**params, crops_suppression="library"), model).masks

    def areas(masks: tuple[Mask, ...]) -> list[float]:
        return [mask.crop_box_xywh[2] * mask.crop_box_xywh[3] for mask in masks]

    assert areas(original) == sorted(areas(original))
    assert areas(library) != sorted(areas(library))
    whole = max(areas(original))
    assert sum(area < whole for area in areas(original)) > sum(area < whole for area in areas(library))


def test_without_crops_both_ways_of_suppression_agree(model: SegmentationModel, example: Example) -> None:
    photo, params = example("coins.png"), {"points_per_crop": 8, **LOOSE}

    original = segment(photo, everything(**params), model).masks

    assert original == segment(photo, everything(**params, crops_suppression="library"), model).masks


def test_no_batch_is_larger_than_asked(model: SegmentationModel, example: Example) -> None:
    watch = Recorder()

    done = segment(example("coins.png"), everything(points_per_crop=5, points_per_batch=10), model, watch)

    assert (done.metrics.points, done.metrics.batches, done.metrics.points_per_batch) == (25, 3, 10)
    assert watch.stages == [Stage.EMBEDDING, Stage.DECODING]
    assert [(done, total) for done, total, _ in watch.batches] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_batch_is_lowered_to_what_memory_holds(model: SegmentationModel) -> None:
    # In each of two layers 4 heads' weights for 6 of 7 tokens, and a constant; 24 × 24 positions, float32.
    a_point_takes = 2 * (4 * 6 + 1) * 24 * 24 * 4

    assert batch_that_fits(model, 128) == 128
    assert batch_that_fits(model, 4096) == 32 * 2**20 // a_point_takes


def test_the_watch_stops_the_job_between_batches(model: SegmentationModel, example: Example) -> None:
    watch = Recorder(stop_at=2)

    with pytest.raises(StoppedError):
        segment(example("coins.png"), everything(points_per_crop=8, points_per_batch=16), model, watch)

    assert [done for done, _, _ in watch.batches] == [0, 1, 2]


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_an_image_of_any_shape_is_segmented(model: SegmentationModel, size_wh: tuple[int, int]) -> None:
    import numpy as np

    photo = Photo(np.full((size_wh[1], size_wh[0], 3), 120, dtype=np.uint8), size_wh, "PNG")
    spec = everything(points_per_crop=2, crops_n_layers=1, pred_iou_thresh=0.0, stability_score_thresh=0.0)

    done = segment(photo, spec, model)

    assert done.masks
    assert all(mask.size_hw == (size_wh[1], size_wh[0]) for mask in done.masks)


def test_the_parameters_are_the_pipelines_own() -> None:
    import inspect

    from transformers.pipelines.mask_generation import MaskGenerationPipeline

    theirs: dict[str, Any] = {"crops_nms_thresh": 0.7}
    for step in (MaskGenerationPipeline.preprocess, MaskGenerationPipeline._forward):
        for name, parameter in inspect.signature(step).parameters.items():
            if parameter.default is not inspect.Parameter.empty and parameter.default is not None:
                theirs[name] = parameter.default

    assert EverythingParams().model_dump(exclude=OURS) == pytest.approx(theirs)


class StoppedError(Exception):
    pass


class Recorder:
    """A watch that records what is reported, and stops the job at a given batch."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stages: list[Stage] = []
        self.batches: list[tuple[int, int, int]] = []
        self._stop_at = stop_at

    def stage(self, stage: Stage) -> None:
        self.stages.append(stage)

    def batch(self, done: int, total: int, masks: int) -> None:
        self.batches.append((done, total, masks))
        if done == self._stop_at:
            raise StoppedError


def _different_pixels(mask: Mask, rle: dict[str, Any]) -> int:
    theirs = coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"])) > 0
    return int((decode_mask(mask) ^ theirs).sum())


def _first_and_last_pixel(mask: Mask) -> list[float]:
    x, y, width, height = mask.bbox_xywh
    return [x, y, x + max(width - 1, 0), y + max(height - 1, 0)]
