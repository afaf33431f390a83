"""Masks with pixels in doubt are decoded once more by the library's decoder, in the company that they have there."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.worker.checkpoints import save_tiny
from tests.worker.conftest import everything, points
from tests.worker.truth import coins
from worker import doubt, drafts
from worker.crops import whole
from worker.decoder import Candidates, decode_with_library
from worker.images import Photo
from worker.masks import Mask
from worker.model import SegmentationModel, load_model
from worker.prompts import PADDING, PromptBatch, grid_batches
from worker.segment import segment
from worker.work import SILENT

LOOSE = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
RAGGED: tuple[dict[str, Any], ...] = (
    {"points": [[58, 53]]},
    {"points": [[118, 55.5], [140, 60], [150, 120]], "labels": [1, 1, 0]},
    {"points": [[45, 50], [75, 75]], "labels": [1, 0]},
    {"points": [[158, 53]]},
)
FAST = ("sam", "sam2", "edgetam")


@pytest.fixture(scope="module")
def photo() -> Photo:
    return Photo(np.array(coins((384, 303))), (384, 303), "PNG")


@pytest.fixture
def doubting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask has too many pixels in doubt."""
    monkeypatch.setattr(doubt, "MOST", -1)


def listening(model: SegmentationModel, heard: list[PromptBatch], memory_for: int = 64) -> SegmentationModel:
    """The same model; what is decoded again is remembered, and may be only so many prompts at once."""

    class Listening(type(model.family)):  # type: ignore[misc]
        def decode_with_library(self, embedding: object, batch: PromptBatch, **asked: bool) -> Candidates:
            if len(batch.indices) > memory_for:
                raise torch.OutOfMemoryError("CUDA out of memory")
            heard.append(batch)
            return super().decode_with_library(embedding, batch, **asked)

    family = copy.copy(model.family)
    family.__class__ = Listening
    return dataclasses.replace(model, family=family)


def logits_of(masks: tuple[Mask, ...]) -> list[np.ndarray]:
    return [mask.logits for mask in masks if mask.logits is not None]


@pytest.fixture(scope="module", params=FAST)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SegmentationModel:
    return load_model(save_tiny(request.param, tmp_path_factory.mktemp(request.param)), "cpu")


@pytest.mark.usefixtures("doubting")
@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_decoded_again_have_the_librarys_bits_for_each_alone(
    tiny: SegmentationModel, photo: Photo, multimask: bool
) -> None:
    heard: list[PromptBatch] = []
    spec = points(*RAGGED, multimask=multimask, outputs=("logits",))

    done = segment(photo, spec, listening(tiny, heard))

    assert done.metrics.decoded_again == len(RAGGED)
    assert [len(batch.indices) for batch in heard] == [1] * len(RAGGED)
    assert not any((batch.labels == PADDING).any() for batch in heard if batch.labels is not None)
    embedding = tiny.family.embed(photo.pixels)
    image = tiny.family.image_arguments(tiny.family.for_library(embedding).values)
    for batch in heard:
        with torch.inference_mode():
            theirs = decode_with_library(
                tiny.family.network, batch, multimask=multimask or not tiny.family.chooses_one, **image
            )
        own = [mask for mask in done.masks if mask.prompt == batch.indices[0]]
        columns = range(3) if multimask else [int(theirs.predicted_iou[0].argmax())]
        for mask, column in zip(own, columns, strict=True):
            low = theirs.logits(torch.tensor([0]), torch.tensor([column]))[0].numpy()
            assert np.array_equal(logits_of((mask,))[0], low)


@pytest.mark.usefixtures("doubting")
def test_objects_of_one_job_have_the_bits_that_each_has_alone(model: SegmentationModel, photo: Photo) -> None:
    together = segment(photo, points(*RAGGED, multimask=True), model).masks

    alone = [segment(photo, points(prompt, multimask=True), model).masks for prompt in RAGGED]

    assert [mask.counts for mask in together] == [mask.counts for masks in alone for mask in masks]


@pytest.mark.usefixtures("doubting")
def test_the_grids_points_are_decoded_again_in_the_company_that_the_library_gives_them(
    model: SegmentationModel, photo: Photo
) -> None:
    heard: list[PromptBatch] = []
    spec = everything(
        points_per_crop=5, points_per_batch=8, pred_iou_thresh=0.0, stability_score_thresh=0.0
    ).model_copy(update={"outputs": ("logits",)})

    done = segment(photo, spec, listening(model, heard))

    # 25 points: eight, eight, eight and the last alone; with those of one size the rest of a batch is filled up.
    assert sorted({len(batch.indices) for batch in heard}) == [1, doubt.ALIKE]
    theirs = _library_everything(model, photo)
    for mask, logits in zip(done.masks, logits_of(done.masks), strict=True):
        assert any(np.array_equal(logits, low) for low in theirs[mask.point_coords])


def test_masks_that_are_drafted_again_keep_their_order_and_their_scores(
    model: SegmentationModel, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = everything(points_per_crop=8, points_per_batch=16, **LOOSE)
    before = segment(photo, spec, model)

    monkeypatch.setattr(doubt, "MOST", -1)
    again = segment(photo, spec, model)

    assert before.metrics.decoded_again == 0
    assert again.metrics.decoded_again > 5
    assert len(again.masks) == len(before.masks)
    assert [mask.predicted_iou for mask in again.masks] == [mask.predicted_iou for mask in before.masks]
    assert [mask.point_coords for mask in again.masks] == [mask.point_coords for mask in before.masks]
    assert all(abs(a.area - b.area) <= doubt.MOST + 6 for a, b in zip(again.masks, before.masks, strict=True))


def test_masks_with_few_pixels_in_doubt_are_left(model: SegmentationModel, photo: Photo) -> None:
    heard: list[PromptBatch] = []

    done = segment(photo, everything(points_per_crop=4, **LOOSE), listening(model, heard))

    assert done.masks
    assert not heard


def test_only_masks_with_many_are_decoded_again(model: SegmentationModel) -> None:
    """A photo of 18 MP has some of either kind."""
    large = Photo(np.array(coins((4899, 3674))), (4899, 3674), "PNG")

    done = segment(large, everything(points_per_crop=5, **LOOSE), model)

    assert 0 < done.metrics.decoded_again < len({mask.point_coords for mask in done.masks})


@pytest.mark.parametrize("crops_suppression", ["original", "library"])
@pytest.mark.usefixtures("doubting")
def test_each_crops_masks_are_decoded_again_on_their_crop(
    model: SegmentationModel, photo: Photo, crops_suppression: str
) -> None:
    heard: list[PromptBatch] = []
    spec = everything(
        points_per_crop=4, points_per_batch=4, crops_n_layers=1, crops_suppression=crops_suppression, **LOOSE
    )

    done = segment(photo, spec, listening(model, heard))

    assert len({mask.crop_box_xywh for mask in done.masks}) > 1
    settled = segment(photo, spec, model)
    assert done.masks == settled.masks
    assert len(heard) >= 3


@pytest.mark.usefixtures("doubting")
def test_masks_that_were_written_early_are_decoded_again_too(
    model: SegmentationModel, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = everything(points_per_crop=4, points_per_batch=4, **LOOSE)
    at_leisure = segment(photo, spec, model)

    monkeypatch.setattr(drafts, "_OUTLINE_BYTES", 0)
    in_haste = segment(photo, spec, model)

    assert in_haste.masks == at_leisure.masks
    assert in_haste.metrics.decoded_again == at_leisure.metrics.decoded_again > 0


def test_a_mask_that_was_written_early_still_knows_its_pixels_in_doubt(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Photo(np.array(coins((4899, 3674))), (4899, 3674), "PNG")
    spec = everything(points_per_crop=3, **LOOSE)
    at_leisure = segment(large, spec, model).metrics.decoded_again

    monkeypatch.setattr(drafts, "_OUTLINE_BYTES", 0)

    assert segment(large, spec, model).metrics.decoded_again == at_leisure > 0


@pytest.mark.usefixtures("doubting")
def test_where_memory_ends_they_are_decoded_in_smaller_batches(model: SegmentationModel, photo: Photo) -> None:
    heard: list[PromptBatch] = []
    spec = everything(points_per_crop=4, points_per_batch=4, **LOOSE)

    done = segment(photo, spec, listening(model, heard, memory_for=2))

    assert {len(batch.indices) for batch in heard} == {2}
    assert done.metrics.points_per_batch == 2
    assert len(done.masks) == len(segment(photo, spec, model).masks)


@pytest.mark.usefixtures("doubting")
def test_a_job_can_be_cancelled_between_its_second_decodings(model: SegmentationModel, photo: Photo) -> None:
    class Cancel(Exception):
        pass

    class Watch(type(SILENT)):  # type: ignore[misc]
        whole = 0

        def batch(self, done: int, total: int, masks: int) -> None:  # noqa: ARG002
            self.whole += done == total
            if self.whole == 2:  # the first is after the last batch
                raise Cancel

    with pytest.raises(Cancel):
        segment(photo, everything(points_per_crop=4, points_per_batch=4, **LOOSE), model, Watch())


@pytest.mark.usefixtures("doubting")
def test_half_precision_has_no_digits_to_settle(demo_model: str, photo: Photo) -> None:
    half = load_model(demo_model, "cpu", "bfloat16")

    assert segment(photo, points(RAGGED[0]), half).metrics.decoded_again == 0


@pytest.mark.usefixtures("doubting")
def test_a_family_that_goes_through_the_library_has_nothing_to_settle(tmp_path: Path, photo: Photo) -> None:
    through = load_model(save_tiny("sam_hq", tmp_path), "cpu")

    assert segment(photo, points(RAGGED[0]), through).metrics.decoded_again == 0


def _library_everything(model: SegmentationModel, photo: Photo) -> dict[Any, list[np.ndarray]]:
    """The library's three candidates of every point of the grid, in the pipeline's own batches of eight."""
    embedding = model.family.embed(photo.pixels)
    image = model.family.image_arguments(model.family.for_library(embedding).values)
    theirs = {}
    for batch in grid_batches(whole(photo.size_wh, 5), embedding.frame, 8):
        with torch.inference_mode():
            candidates = decode_with_library(model.family.network, batch, multimask=True, **image)
        for row, asked in enumerate(batch.asked_xy):
            theirs[asked] = [low.numpy() for low in candidates.logits(torch.tensor([row] * 3), torch.arange(3))]
    return theirs
