"""Each step from logits to masks equals its slow twin, or the library's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask

from jobs.spec import EverythingParams
from tests import references
from tests.worker.conftest import MAX_PIXELS
from worker import masks
from worker.crops import Crop, lay_out, whole
from worker.decoder import at_hand
from worker.embedding import Frame, frame_of, pixel_values
from worker.images import decode_photo
from worker.masks import Cut, Mask
from worker.model import SegmentationModel
from worker.prompts import PromptBatch

SIDES = st.integers(1, 12)
BOOLS = arrays.arrays(np.bool_, st.tuples(SIDES, SIDES))


@settings(max_examples=40, deadline=None)
@given(
    logits=arrays.arrays(np.float32, (5, 6), elements=st.floats(-20, 20, width=32)),
    original_hw=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    padded=st.integers(8, 20),
)
def test_upscaling_is_two_bilinear_steps(logits: np.ndarray, original_hw: tuple[int, int], padded: int) -> None:
    scale = padded / max(original_hw)
    scaled_hw = (max(1, round(original_hw[0] * scale)), max(1, round(original_hw[1] * scale)))
    frame = Frame(original_hw, scaled_hw, (padded, padded))

    fast = masks.upscale(torch.from_numpy(logits)[None], frame)[0].numpy()

    assert np.allclose(fast, references.upscaled(logits, (padded, padded), scaled_hw, original_hw), atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(
    logits=arrays.arrays(np.float32, st.tuples(SIDES, SIDES), elements=st.floats(-4, 4, width=32)),
    threshold=st.sampled_from([0.0, 0.5, -1.0]),
    offset=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_stability_is_the_inner_area_over_the_outer(logits: np.ndarray, threshold: float, offset: float) -> None:
    fast = masks.stability(torch.from_numpy(logits)[None], threshold, offset)

    assert float(fast[0]) == pytest.approx(references.stability(logits, threshold, offset))


def test_an_empty_mask_has_a_stability_of_zero() -> None:
    assert masks.stability(torch.full((2, 3, 3), -9.0), 0.0, 1.0).tolist() == [0.0, 0.0]


@given(BOOLS)
def test_the_box_holds_all_pixels_and_touches_its_sides(mask: np.ndarray) -> None:
    assert masks.bounding_box(mask) == references.bounding_box(mask)


@given(mask=BOOLS, left=st.integers(0, 4), top=st.integers(0, 4), beyond=st.integers(0, 4))
def test_a_crops_rle_lies_in_its_place_on_the_image(mask: np.ndarray, left: int, top: int, beyond: int) -> None:
    height, width = mask.shape
    size_wh = (left + width + beyond, top + height + beyond)
    canvas = np.zeros((size_wh[1], size_wh[0]), dtype=np.bool_)
    canvas[top : top + height, left : left + width] = mask

    counts = masks.encode(mask, Crop((left, top, left + width, top + height), 1), size_wh)

    lengths: Any = {"size": list(canvas.shape), "counts": references.run_lengths(canvas)}
    assert counts == coco_mask.frPyObjects(lengths, *canvas.shape)["counts"].decode()


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

    kept = masks.suppress(found, thresh)

    assert kept == tuple(
        found[index] for index in references.suppressed(corners, [m.predicted_iou for m in found], thresh)
    )


def test_suppression_agrees_with_torchvision_on_many_boxes() -> None:
    from torchvision.ops import nms

    random = np.random.default_rng(3)
    found = [
        _mask((*random.integers(0, 200, 2).tolist(), *random.integers(1, 60, 2).tolist()), float(np.float32(score)))
        for score in random.random(3000)
    ]
    corners = torch.tensor([[x, y, x + w - 1, y + h - 1] for x, y, w, h in (mask.bbox_xywh for mask in found)])
    theirs = nms(corners.float(), torch.tensor([mask.predicted_iou for mask in found]), 0.6)

    kept = masks.suppress(found, 0.6)

    assert kept == tuple(found[index] for index in theirs.tolist())


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

    from worker.model import load_model

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

    assert masks.is_cut_off(at_the_inner_edge, size_wh)
    assert not masks.is_cut_off(at_the_images_edge, size_wh)
    assert not masks.is_cut_off(inside, size_wh)


def test_many_masks_of_a_large_image_are_upscaled_a_few_at_a_time() -> None:
    logits = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 4
    candidates = at_hand(logits, torch.rand(6, 3, generator=torch.Generator().manual_seed(1)))
    batch = PromptBatch(None, None, None, tuple(range(6)), ((),) * 6)
    size_wh = (2400, 1800)  # 17 MB a mask: three at a time
    frame = Frame((1800, 2400), (48, 64), (64, 64))

    made = list(
        masks.make_masks(candidates, masks.choose_all(candidates), batch, frame, whole(size_wh), size_wh, Cut(0.0))
    )

    at_once = masks.upscale(logits.flatten(0, 1), frame) > 0
    assert [(row, column) for row, column, _ in made] == [(row, column) for row in range(6) for column in range(3)]
    for (_, _, mask), pixels in zip(made, at_once, strict=True):
        assert np.array_equal(masks.decode_rle(mask), pixels.numpy())
        assert mask.area == int(pixels.sum())


def test_measures_of_a_mask_agree_with_pycocotools(model: SegmentationModel, repository: Any) -> None:
    from tests.worker.conftest import boxes
    from worker.segment import segment

    photo = decode_photo((repository / "examples" / "coins.png").read_bytes(), MAX_PIXELS)

    (mask,) = segment(photo, boxes({"box": [90, 30, 141, 76]}), model).masks

    rle: Any = {"size": list(mask.size_hw), "counts": mask.counts}
    assert mask.area == coco_mask.area(rle) > 0
    assert list(mask.bbox_xywh) == coco_mask.toBbox(rle).tolist()


@given(scores=arrays.arrays(np.float32, (4, 3), elements=st.floats(-1, 1, width=32)))
def test_the_best_candidate_is_the_first_of_the_highest_score(scores: np.ndarray) -> None:
    assume(all(len(set(row)) == 3 for row in scores.tolist()))
    candidates = at_hand(torch.zeros(4, 3, 1, 1), torch.from_numpy(scores))

    best = masks.choose_best(candidates)

    assert best.rows.tolist() == [0, 1, 2, 3]
    assert best.columns.tolist() == [row.index(max(row)) for row in scores.tolist()]


def _mask(
    bbox_xywh: tuple[float, ...], score: float, crop_xywh: tuple[float, float, float, float] = (0, 0, 200, 200)
) -> Mask:
    x, y, width, height = bbox_xywh
    return Mask("", (200, 200), 1, (x, y, width, height), score, 1.0, (), crop_xywh, None, None)
