"""Each step from logits to masks equals its slow reference version, or the library's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn.functional import interpolate

from maskfleet.jobs.schema.spec import EverythingParams
from maskfleet.worker.image.decode import decode_photo
from maskfleet.worker.masks import choice
from maskfleet.worker.masks.choice import Cut, View
from maskfleet.worker.masks.from_candidates import measure_masks
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.masks.measure import Measures, stability
from maskfleet.worker.masks.pending import PendingMask, PendingMasks
from maskfleet.worker.masks.suppression import better_of_overlapping, is_cut_off, smaller_crop_of_overlapping
from maskfleet.worker.sam.candidates import Candidates, at_hand
from maskfleet.worker.sam.crops import lay_out, whole
from maskfleet.worker.sam.embedding import Frame, frame_of, pixel_values
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import PromptBatch
from tests import references
from tests.worker.conftest import MAX_PIXELS


def test_stability_is_the_inner_area_over_the_outer() -> None:
    measures = Measures(np.array([[8, 6, 3], [5, 5, 5], [2, 0, 0]]), np.zeros((3, 4), int), np.zeros((3, 4), int))

    assert stability(measures).tolist() == [0.375, 1.0, 0.0]


def test_an_empty_mask_has_a_stability_of_zero() -> None:
    # transformers divides 0 by 0 and returns nan
    measures = Measures(np.zeros((2, 3), int), np.zeros((2, 4), int), np.zeros((2, 4), int))

    assert stability(measures).tolist() == [0.0, 0.0]


@settings(max_examples=100, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 9), st.integers(0, 9)), max_size=25
    ),
    scores=st.lists(st.integers(0, 8), min_size=25, max_size=25),
    thresh=st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.7, 1.0]),
)
def test_suppression_keeps_the_best_of_overlapping_boxes(
    boxes: list[tuple[int, int, int, int]], scores: list[int], thresh: float
) -> None:
    found = [_mask((x, y, width + 1, height + 1), score / 8) for (x, y, width, height), score in zip(boxes, scores)]  # noqa: B905
    corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]

    kept = better_of_overlapping(found, thresh)

    assert kept == references.suppressed(corners, [mask.predicted_iou for mask in found], thresh)


CROPS = [(0, 0, 200, 200), (0, 0, 120, 120), (80, 0, 120, 120), (80, 80, 60, 60)]


@settings(max_examples=100, deadline=None)
@given(
    found=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 20), st.integers(0, 9), st.integers(0, 8)),
        max_size=25,
    ),
    thresh=st.sampled_from([0.0, 0.3, 0.5, 0.7]),
)
def test_crops_are_suppressed_as_in_the_original_generator(
    found: list[tuple[int, int, int, int, int]], thresh: float
) -> None:
    by_crop = [
        [_mask((x, y, 5 + side, 5), score / 8, CROPS[crop]) for crop, x, y, side, score in found if crop == number]
        for number in range(4)
    ]
    corners = [[(x, y, x + w - 1, y + h - 1) for x, y, w, h in (mask.bbox_xywh for mask in masks)] for masks in by_crop]
    scores = [[mask.predicted_iou for mask in masks] for masks in by_crop]
    expected = references.suppressed_over_crops(corners, scores, [w * h for _, _, w, h in CROPS], thresh)

    in_crops = [[masks[index] for index in better_of_overlapping(masks, thresh)] for masks in by_crop]
    rest = [mask for masks in in_crops for mask in masks]
    kept = [rest[index] for index in smaller_crop_of_overlapping(rest, thresh)]

    assert kept == [by_crop[crop][index] for crop, index in expected]


def test_suppression_agrees_with_torchvision_on_many_boxes() -> None:
    from torchvision.ops import nms

    random = np.random.default_rng(3)
    found = [
        _mask((*random.integers(0, 200, 2).tolist(), *random.integers(1, 60, 2).tolist()), float(np.float32(score)))
        for score in random.random(3000)
    ]
    corners = torch.tensor([[x, y, x + w - 1, y + h - 1] for x, y, w, h in (mask.bbox_xywh for mask in found)])
    theirs = nms(corners.float(), torch.tensor([mask.predicted_iou for mask in found]), 0.6)

    kept = better_of_overlapping(found, 0.6)

    assert kept == theirs.tolist()


@pytest.mark.parametrize("size_wh", [(640, 480), (97, 301), (1000, 30)])
@pytest.mark.parametrize("ratio", [0.0, 512 / 1500, 0.9])
def test_crops_are_the_librarys(size_wh: tuple[int, int], ratio: float) -> None:
    from transformers.models.sam.image_processing_sam import _generate_per_layer_crops

    theirs, _ = _generate_per_layer_crops(3, ratio, (size_wh[1], size_wh[0]))

    ours = lay_out(size_wh, EverythingParams(crops_n_layers=3, crop_overlap_ratio=ratio))

    with_pixels = [tuple(box) for box in theirs if box[2] > box[0] and box[3] > box[1]]
    assert [crop.box_xyxy for crop in ours] == with_pixels


def test_a_crop_has_at_least_one_point() -> None:
    crops = lay_out((64, 64), EverythingParams(points_per_crop=4, crops_n_layers=3, crop_n_points_downscale_factor=8))

    assert {crop.points_per_side for crop in crops} == {4, 1}


@pytest.mark.parametrize("size_wh", [(384, 303), (301, 640), (384, 384), (50, 20), (1, 1), (3, 700), (2000, 1500)])
def test_the_models_input_is_the_image_processors(demo_model: str, size_wh: tuple[int, int]) -> None:
    from transformers import SamImageProcessor

    from maskfleet.worker.sam.model import load_model

    preprocessing = load_model(demo_model, "cpu").family.preprocessing
    pixels = np.random.default_rng(5).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    theirs = SamImageProcessor.from_pretrained(demo_model)(Image.fromarray(pixels), return_tensors="pt")

    frame = frame_of((size_wh[1], size_wh[0]), preprocessing)
    ours = pixel_values(pixels, frame, preprocessing)

    assert frame.scaled_hw == tuple(theirs["reshaped_input_sizes"][0].tolist())
    assert torch.equal(ours, theirs["pixel_values"])


def test_a_mask_at_an_inner_edge_of_its_crop_is_cut_off() -> None:
    size_wh, crop = (200, 200), (0.0, 0.0, 120.0, 120.0)

    at_the_inner_edge = _mask((60, 50, 58, 10), 1.0, crop)
    at_the_images_edge = _mask((0, 0, 50, 50), 1.0, crop)
    inside = _mask((40, 40, 50, 50), 1.0, crop)

    assert is_cut_off(at_the_inner_edge, size_wh)
    assert not is_cut_off(at_the_images_edge, size_wh)
    assert not is_cut_off(inside, size_wh)


def pending_of(logits: torch.Tensor, cut: Cut, size_wh: tuple[int, int]) -> list[PendingMask]:
    """Return all three candidates of each prompt, on an image within a frame of 64 × 64."""
    candidates = at_hand(logits, torch.rand(logits.shape[:2], generator=torch.Generator().manual_seed(1)))
    batch = PromptBatch(None, None, None, tuple(range(len(logits))), ((),) * len(logits))
    frame = Frame((size_wh[1], size_wh[0]), (48, 64), (64, 64))
    chosen = choice.choose_all(candidates)
    made = list(measure_masks(candidates, chosen, batch, View(frame, whole(size_wh), size_wh, cut)))
    assert [(pending.row, pending.column) for pending in made] == list(np.ndindex(len(logits), 3))
    return made


def random_logits(prompts: int) -> torch.Tensor:
    return torch.randn(prompts, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 4


def test_many_masks_are_made_some_at_a_time() -> None:
    logits, size_wh = random_logits(50), (240, 180)

    made = pending_of(logits, Cut(0.0), size_wh)

    for pending, low in zip(made, logits.flatten(0, 1), strict=True):
        large = interpolate(low[None, None], (64, 64), mode="bilinear")[..., :48, :64]
        pixels = interpolate(large, (180, 240), mode="bilinear")[0, 0] > 0
        assert np.array_equal(decode_mask(pending.written()), pixels.numpy())
        assert pending.mask.area == int(pixels.sum())


def test_no_masks_are_made_when_no_candidate_is_promising() -> None:
    def refuse(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing was chosen")

    candidates = Candidates(torch.full((2, 3), 0.5), refuse)
    batch, frame = PromptBatch(None, None, None, (0, 1), ((), ())), Frame((30, 40), (48, 64), (64, 64))

    chosen = choice.choose_promising(candidates, 0.5)

    assert list(measure_masks(candidates, chosen, batch, View(frame, whole((40, 30)), (40, 30), Cut(0.0)))) == []


def test_masks_are_written_at_once_when_many_wait() -> None:
    made = pending_of(random_logits(4), Cut(0.0), (240, 180))
    found = PendingMasks(logits_window_bytes=5 * made[0].logits_window.transposed.nbytes)

    for pending in made:
        found.add(pending)

    assert found.held_bytes <= 5 * made[0].logits_window.transposed.nbytes
    assert found.written() == tuple(pending.written() for pending in made)
    found.keep(lambda masks: [len(masks) - 1, 0], first=4)
    assert found.written() == tuple(made[index].written() for index in (0, 1, 2, 3, 11, 4))


def test_measures_of_a_mask_agree_with_pycocotools(model: SegmentationModel, repository: Any) -> None:
    from maskfleet.worker.segment import segment
    from tests.worker.conftest import boxes

    photo = decode_photo((repository / "examples" / "coins.png").read_bytes(), MAX_PIXELS)

    (mask,) = segment(photo, boxes({"box": [90, 30, 141, 76]}), model).masks

    rle: Any = {"size": list(mask.size_hw), "counts": mask.counts}
    assert mask.area == coco_mask.area(rle) > 0
    assert list(mask.bbox_xywh) == coco_mask.toBbox(rle).tolist()


@given(scores=arrays.arrays(np.float32, (4, 3), elements=st.floats(-1, 1, width=32)))
def test_the_best_candidate_is_the_first_of_the_highest_score(scores: np.ndarray) -> None:
    assume(all(len(set(row)) == 3 for row in scores.tolist()))
    candidates = at_hand(torch.zeros(4, 3, 1, 1), torch.from_numpy(scores))

    best = choice.choose_best(candidates)

    assert best.rows.tolist() == [0, 1, 2, 3]
    assert best.columns.tolist() == [row.index(max(row)) for row in scores.tolist()]


def _mask(
    bbox_xywh: tuple[float, ...], score: float, crop_xywh: tuple[float, float, float, float] = (0, 0, 200, 200)
) -> Mask:
    x, y, width, height = bbox_xywh
    return Mask("", (200, 200), 1, (x, y, width, height), score, 1.0, (), crop_xywh, None, None)
