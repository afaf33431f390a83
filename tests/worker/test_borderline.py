"""Prompts of masks with many borderline pixels are decoded again, bit-for-bit like the library's own batches."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.borderline import MAX_BORDERLINE_PIXELS
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.sam.candidates import Candidates, decode_with_library
from maskfleet.worker.sam.crops import whole
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.sam.prompts import PADDING, PromptBatch, grid_batches
from maskfleet.worker.sam.reference import ALONE, BatchSlot, grid_slot
from maskfleet.worker.segment import segment
from maskfleet.worker.steps import SILENT, Bounds
from tests.worker.checkpoints import save_tiny
from tests.worker.conftest import everything, points
from tests.worker.truth import coins

LOOSE = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
RAGGED: tuple[dict[str, Any], ...] = (
    {"points": [[58, 53]]},
    {"points": [[118, 55.5], [140, 60], [150, 120]], "labels": [1, 1, 0]},
    {"points": [[45, 50], [75, 75]], "labels": [1, 0]},
    {"points": [[158, 53]]},
)
#: Every mask has too many borderline pixels.
EVERY_MASK = Bounds(borderline_pixels=-1)
FAST = ("sam", "sam2", "edgetam")

Heard = list[tuple[PromptBatch, BatchSlot]]


@pytest.fixture(scope="module")
def photo() -> Photo:
    return Photo(np.array(coins((384, 303))), (384, 303), "PNG")


@pytest.fixture(scope="module")
def large() -> Photo:
    """A photo of 18 MP, on which some masks have many borderline pixels."""
    return Photo(np.array(coins((4899, 3674))), (4899, 3674), "PNG")


@pytest.fixture(scope="module", params=FAST)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SegmentationModel:
    return load_model(save_tiny(request.param, tmp_path_factory.mktemp(request.param)), "cpu")


def listening(model: SegmentationModel, heard: Heard) -> SegmentationModel:
    """Return the same model, recording what is decoded again."""

    class Listening(type(model.family)):  # type: ignore[misc]
        def decode_in_slot(self, embedding: object, prompt: PromptBatch, slot: BatchSlot, **asked: bool) -> Candidates:
            heard.append((prompt, slot))
            return super().decode_in_slot(embedding, prompt, slot, **asked)

    family = copy.copy(model.family)
    family.__class__ = Listening
    return replace(model, family=family)


def logits_of(masks: tuple[Mask, ...]) -> list[np.ndarray]:
    return [mask.logits for mask in masks if mask.logits is not None]


@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_decoded_again_have_the_librarys_bits_for_each_alone(
    tiny: SegmentationModel, photo: Photo, multimask: bool
) -> None:
    heard: Heard = []
    spec = points(*RAGGED, multimask=multimask, outputs=("logits",))

    done = segment(photo, spec, listening(tiny, heard), bounds=EVERY_MASK)

    assert done.metrics.decoded_again == len(RAGGED)
    assert [slot for _, slot in heard] == [ALONE] * len(RAGGED)
    assert not any((prompt.labels == PADDING).any() for prompt, _ in heard if prompt.labels is not None)
    image = _for_library(tiny, photo.pixels)
    for prompt, _ in heard:
        with torch.inference_mode():
            theirs = decode_with_library(
                tiny.family.network, prompt, multimask=multimask or not tiny.family.chooses_one, **image
            )
        own = [mask for mask in done.masks if mask.prompt == prompt.indices[0]]
        columns = range(3) if multimask else [int(theirs.predicted_iou[0].argmax())]
        for mask, column in zip(own, columns, strict=True):
            low = theirs.logits(torch.tensor([0]), torch.tensor([column]))[0].numpy()
            assert np.array_equal(logits_of((mask,))[0], low)


def test_objects_of_one_job_have_the_bits_that_each_has_alone(model: SegmentationModel, photo: Photo) -> None:
    together = segment(photo, points(*RAGGED, multimask=True), model, bounds=EVERY_MASK).masks

    alone = [segment(photo, points(prompt, multimask=True), model, bounds=EVERY_MASK).masks for prompt in RAGGED]

    assert [mask.counts for mask in together] == [mask.counts for masks in alone for mask in masks]


@pytest.mark.parametrize("points_per_batch", [2, 8, 13, 64])
def test_the_grids_points_are_decoded_again_with_the_bits_of_the_pipelines_batches(
    model: SegmentationModel, photo: Photo, points_per_batch: int
) -> None:
    """25 points: most batch sizes leave a smaller last batch, down to a single point."""
    heard: Heard = []
    spec = everything(points_per_crop=5, points_per_batch=points_per_batch, **ALL)

    done = segment(photo, spec.model_copy(update={"outputs": ("logits",)}), listening(model, heard), bounds=EVERY_MASK)

    assert {slot.size for _, slot in heard} == {min(points_per_batch, 25), 25 % points_per_batch or points_per_batch}
    assert done.metrics.decoded_again_exactly == model.family.redecodes_exactly
    theirs = _library_everything(model, photo, points_per_batch)
    for mask, logits in zip(done.masks, logits_of(done.masks), strict=True):
        if model.family.redecodes_exactly:
            assert any(np.array_equal(logits, low) for low in theirs[mask.point_coords])
        else:
            assert any(np.allclose(logits, low, atol=1e-3) for low in theirs[mask.point_coords])


def test_the_pipelines_batches_and_not_ours_say_how_a_point_is_decoded_again(
    model: SegmentationModel, photo: Photo
) -> None:
    """Lack of memory may make ours smaller."""
    heard: Heard = []
    family = copy.copy(model.family)
    family.cpu_batch_bytes = 3 * family.point_bytes

    done = segment(
        photo,
        everything(points_per_crop=5, points_per_batch=20, **ALL),
        listening(replace(model, family=family), heard),
        bounds=EVERY_MASK,
    )

    assert done.metrics.points_per_batch == 3
    assert [slot for _, slot in heard] == [grid_slot(prompt.indices[0], 25, 20) for prompt, _ in heard]
    assert {slot.size for _, slot in heard} == {20, 5}


def test_masks_that_are_measured_again_keep_their_order_and_their_scores(
    model: SegmentationModel, photo: Photo
) -> None:
    spec = everything(points_per_crop=8, points_per_batch=16, **LOOSE)
    before = segment(photo, spec, model)

    again = segment(photo, spec, model, bounds=EVERY_MASK)

    assert before.metrics.decoded_again == 0
    assert again.metrics.decoded_again > 5
    assert [mask.predicted_iou for mask in again.masks] == [mask.predicted_iou for mask in before.masks]
    assert [mask.point_coords for mask in again.masks] == [mask.point_coords for mask in before.masks]
    differing = [int((decode_mask(a) ^ decode_mask(b)).sum()) for a, b in zip(again.masks, before.masks, strict=True)]
    assert max(differing) <= MAX_BORDERLINE_PIXELS


def test_masks_with_few_borderline_pixels_are_left(model: SegmentationModel, photo: Photo) -> None:
    heard: Heard = []

    done = segment(photo, everything(points_per_crop=4, **LOOSE), listening(model, heard))

    assert done.masks
    assert not heard


def test_only_masks_with_many_are_decoded_again(model: SegmentationModel, large: Photo) -> None:
    done = segment(large, everything(points_per_crop=5, **LOOSE), model)

    assert 0 < done.metrics.decoded_again < len({mask.point_coords for mask in done.masks})


@pytest.mark.parametrize("crops_suppression", ["original", "library"])
def test_each_crops_masks_are_decoded_again_on_their_crop(
    model: SegmentationModel, photo: Photo, crops_suppression: str
) -> None:
    spec = everything(
        points_per_crop=4, points_per_batch=4, crops_n_layers=1, crops_suppression=crops_suppression, **LOOSE
    ).model_copy(update={"outputs": ("logits",)})

    done = segment(photo, spec, model, bounds=EVERY_MASK)

    crops = {mask.crop_box_xywh for mask in done.masks}
    assert len(crops) > 1
    for left, top, width, height in (tuple(map(int, crop)) for crop in crops):
        part = Photo(photo.pixels[top : top + height, left : left + width].copy(), (width, height), "PNG")
        theirs = _library_everything(model, part, 4, points_per_crop=4)
        for mask in done.masks:
            if mask.crop_box_xywh == (left, top, width, height):
                [(x, y)] = mask.point_coords
                lows = next(lows for [(u, v)], lows in theirs.items() if abs(u + left - x) + abs(v + top - y) < 1e-3)
                assert mask.logits is not None
                # The pipeline's bits are those of one crop after the other; a crop's grid has the same 4 × 4 points.
                assert any(np.allclose(mask.logits, low, atol=1e-3) for low in lows)


def test_masks_that_were_written_early_are_decoded_again_too(model: SegmentationModel, photo: Photo) -> None:
    spec = everything(points_per_crop=4, points_per_batch=4, **LOOSE)

    at_leisure = segment(photo, spec, model, bounds=EVERY_MASK)
    in_haste = segment(photo, spec, model, bounds=replace(EVERY_MASK, logits_window_bytes=0))

    assert in_haste.masks == at_leisure.masks
    assert in_haste.metrics.decoded_again == at_leisure.metrics.decoded_again > 0


def test_a_mask_that_was_written_early_still_knows_its_borderline_pixels(
    model: SegmentationModel, large: Photo
) -> None:
    spec = everything(points_per_crop=3, **LOOSE)

    at_leisure = segment(large, spec, model).metrics.decoded_again
    in_haste = segment(large, spec, model, bounds=Bounds(logits_window_bytes=0)).metrics.decoded_again

    assert in_haste == at_leisure > 0


def test_a_job_can_be_canceled_between_its_second_decodings(model: SegmentationModel, photo: Photo) -> None:
    class Cancel(Exception):
        pass

    class Watch(type(SILENT)):  # type: ignore[misc]
        whole = 0

        def batch(self, done: int, total: int, masks: int) -> None:  # noqa: ARG002
            self.whole += done == total
            if self.whole == 2:  # the first is after the last batch
                raise Cancel

    with pytest.raises(Cancel):
        segment(photo, everything(points_per_crop=4, points_per_batch=4, **LOOSE), model, Watch(), bounds=EVERY_MASK)


def test_half_precision_has_no_digits_to_match(demo_model: str, photo: Photo) -> None:
    half = load_model(demo_model, "cpu", "float16")

    assert segment(photo, points(RAGGED[0]), half, bounds=EVERY_MASK).metrics.decoded_again == 0


def test_a_family_that_goes_through_the_library_decodes_nothing_again(tmp_path: Path, photo: Photo) -> None:
    through = load_model(save_tiny("sam_hq", tmp_path), "cpu")

    assert segment(photo, points(RAGGED[0]), through, bounds=EVERY_MASK).metrics.decoded_again == 0


def _for_library(model: SegmentationModel, pixels: np.ndarray) -> dict[str, Any]:
    return model.family.image_arguments(model.family.for_library(model.family.embed(pixels)).values)


def _library_everything(
    model: SegmentationModel, photo: Photo, points_per_batch: int, points_per_crop: int = 5
) -> dict[Any, list[np.ndarray]]:
    """Return the library's three candidates of every point of the grid, in the pipeline's own batches."""
    image = _for_library(model, photo.pixels)
    frame = model.family.embed(photo.pixels).frame
    theirs = {}
    for batch in grid_batches(whole(photo.size_wh, points_per_crop), frame, points_per_batch):
        with torch.inference_mode():
            candidates = decode_with_library(model.family.network, batch, multimask=True, **image)
        for row, asked in enumerate(batch.asked_xy):
            theirs[asked] = [low.numpy() for low in candidates.logits(torch.tensor([row] * 3), torch.arange(3))]
    return theirs
