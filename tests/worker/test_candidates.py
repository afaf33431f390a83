"""Candidates that are kept, and filtered again, give the masks of a full run with the other thresholds."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskfleet.jobs.errors import InvalidRequest, RecordUnreadable
from maskfleet.jobs.schema.spec import EverythingParams
from maskfleet.worker.candidates.keeping import Keeping
from maskfleet.worker.candidates.kept import KeptCandidates, candidates_file, read_candidates
from maskfleet.worker.candidates.refilter import refilter
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.choice import Cut
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.output.formats import make_artifacts
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.segment import segment
from maskfleet.worker.segmentation import Segmentation
from maskfleet.worker.steps import Bounds
from tests.worker.conftest import everything
from tests.worker.test_masks import pending_of, random_logits

Example = Callable[[str], Photo]

#: Of the runs that keep their candidates: with these each finds masks.
LOOSE = {"pred_iou_thresh": 0.75, "stability_score_thresh": 0.8}
KEEP_ALL = {"keep_candidates": True, "keep_pred_iou_thresh": 0.0, "keep_stability_score_thresh": 0.0}
#: Photographs, grids, and from how many borderline pixels on a mask is decoded again: with -1 each is.
RUNS: dict[str, tuple[str, dict[str, Any], Bounds]] = {
    "coins": ("coins.png", {"points_per_crop": 8}, Bounds()),
    "coffee": ("coffee.jpg", {"points_per_crop": 3, "points_per_batch": 7, "mask_threshold": 0.7}, Bounds(-1)),
    "crops of coins": ("coins.png", {"points_per_crop": 2, "crops_n_layers": 1}, Bounds(-1)),
}
#: A run, crops_suppression, and pred_iou_thresh, stability_score_thresh, crops_nms_thresh and min_mask_area.
CASES = [
    ("coins", "original", (0.8, 0.0, 0.0, 1)),
    ("coffee", "original", (0.6, 0.7, 0.3, 400)),
    ("crops of coins", "original", (0.6, 0.7, 0.3, 400)),
    ("crops of coins", "library", (0.75, 0.8, 0.5, 0)),
]


def thresholds(pred_iou: float, stability: float, nms: float, area: int) -> dict[str, Any]:
    return {
        "pred_iou_thresh": pred_iou,
        "stability_score_thresh": stability,
        "crops_nms_thresh": nms,
        "min_mask_area": area,
    }


@pytest.fixture(scope="module")
def kept_of(model: SegmentationModel, example: Example) -> Callable[[str], Segmentation]:
    """Return a run that keeps every candidate, by name; each is segmented once."""
    made: dict[str, Segmentation] = {}

    def kept(run: str) -> Segmentation:
        name, params, bounds = RUNS[run]
        if run not in made:
            made[run] = segment(example(name), everything(**params, **LOOSE, **KEEP_ALL), model, bounds=bounds)
        return made[run]

    return kept


def candidates_of(done: Segmentation) -> KeptCandidates:
    assert done.candidates is not None
    return done.candidates


@pytest.mark.parametrize(("run", "suppression", "chosen"), CASES, ids=str)
def test_refiltered_masks_are_those_of_a_full_run(
    model: SegmentationModel,
    example: Example,
    kept_of: Callable[[str], Segmentation],
    run: str,
    suppression: str,
    chosen: tuple[float, float, float, int],
) -> None:
    kept = candidates_of(kept_of(run))
    name, grid, bounds = RUNS[run]
    spec = everything(**grid, **thresholds(*chosen), crops_suppression=suppression)

    again = refilter(kept, spec.params)

    full = segment(example(name), spec, model, bounds=bounds)
    assert again == full.masks
    assert full.candidates is None


def test_keeping_candidates_changes_no_mask(
    model: SegmentationModel, example: Example, kept_of: Callable[[str], Segmentation]
) -> None:
    name, grid, bounds = RUNS["crops of coins"]

    plain = segment(example(name), everything(**grid, **LOOSE), model, bounds=bounds)

    kept = kept_of("crops of coins")
    assert kept.masks == plain.masks
    assert plain.masks
    assert kept.metrics.decoded_again > plain.metrics.decoded_again > 0


def test_only_candidates_above_the_thresholds_to_keep_or_the_jobs_own_are_kept(
    model: SegmentationModel, example: Example, kept_of: Callable[[str], Segmentation]
) -> None:
    everyone = candidates_of(kept_of("coins"))
    name, grid, bounds = RUNS["coins"]
    floors = {"keep_candidates": True, "keep_pred_iou_thresh": 0.8, "keep_stability_score_thresh": 0.7}

    some = segment(example(name), everything(**grid, **floors, stability_score_thresh=0.5), model, bounds=bounds)

    kept = candidates_of(some)
    above = (everyone.predicted_iou > np.float32(0.8)) & (everyone.first.stability_score > np.float32(0.5))
    assert 0 < len(kept) < len(everyone)
    assert np.array_equal(kept.predicted_iou, everyone.predicted_iou[above])
    assert (kept.lowest_pred_iou_thresh, kept.lowest_stability_score_thresh) == (0.8, 0.5)


def test_small_masks_are_dropped_before_they_suppress_larger_ones(kept_of: Callable[[str], Segmentation]) -> None:
    kept = candidates_of(kept_of("coins"))
    params = EverythingParams(pred_iou_thresh=0.7, stability_score_thresh=0.7, crops_nms_thresh=0.2)
    before = refilter(kept, params)
    least = sorted(mask.area for mask in before)[len(before) // 2]

    after = refilter(kept, params.model_copy(update={"min_mask_area": least}))

    assert min(mask.area for mask in after) >= least
    assert len(after) > sum(mask.area >= least for mask in before)


def test_the_file_of_candidates_says_what_they_are_to_any_program_with_numpy(
    example: Example, kept_of: Callable[[str], Segmentation]
) -> None:
    done = kept_of("crops of coins")
    kept = candidates_of(done)

    files = {file.name: file for file in make_artifacts(example("coins.png"), everything(), done)}

    assert list(files) == ["coco.json", "candidates.npz"]
    assert files["candidates.npz"].data == candidates_file(kept).data
    with np.load(io.BytesIO(files["candidates.npz"].data)) as arrays:
        width, height = arrays["image_size"]
        ends = arrays["counts_end"]
        for number in range(0, len(arrays["area"]), 17):
            counts = arrays["counts"][ends[number - 1] if number else 0 : ends[number]].tobytes()
            pixels = coco_mask.decode({"size": [int(height), int(width)], "counts": counts})
            assert pixels.sum() == arrays["area"][number]
            left, top, across, down = arrays["crop_boxes"][arrays["crop"][number]]
            x, y = arrays["point_coords"][number]
            assert left <= x <= left + across
            assert top <= y <= top + down
            assert arrays["candidate"][number] in (0, 1, 2)
    assert refilter(read_candidates(files["candidates.npz"].data), EverythingParams.model_validate(LOOSE)) == done.masks


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_a_file_that_is_no_archive_of_candidates_is_not_read(damage: bytes) -> None:
    with pytest.raises(RecordUnreadable):
        read_candidates(damage)


def test_no_pickle_is_loaded_from_a_file_of_candidates() -> None:
    file = io.BytesIO()
    np.savez(file, format=np.array([object()], dtype=object))

    with pytest.raises(RecordUnreadable):
        read_candidates(file.getvalue())


def test_an_image_without_candidates_has_a_file_without_rows(model: SegmentationModel, example: Example) -> None:
    spec = everything(points_per_crop=2, keep_candidates=True, keep_pred_iou_thresh=1.0, pred_iou_thresh=1.0)

    done = segment(example("coins.png"), spec, model)

    files = list(make_artifacts(example("coins.png"), spec, done))
    assert refilter(read_candidates(files[-1].data), spec.params) == done.masks == ()


def test_candidates_are_kept_encoded_and_within_bounds() -> None:
    [first, second, *_] = pending_of(random_logits(2), Cut(0.0), (240, 180))
    room = len(first.written().counts)

    keeping = Keeping(max_bytes=room)
    assert keeping.begin_crop() == 0
    keeping.add(first)

    assert keeping.pending.held_bytes == 0
    assert decode_mask(keeping.pending[0].mask).sum() == first.mask.area
    with pytest.raises(InvalidRequest) as refused:
        keeping.add(second)
    assert refused.value.code == "candidates_too_large"
