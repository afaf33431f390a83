"""Which masks are kept: good ones that no crop's edge cuts off, and the better ones of those that overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskfleet.jobs.schema.spec import EverythingParams
from maskfleet.worker.masks.mask import Mask

#: A box this near its crop's edge, in pixels, counts as cut off by it; from the original's generator.
_EDGE_TOLERANCE_PX = 20


def is_good(mask: Mask, params: EverythingParams) -> bool:
    """Return whether a mask passes the thresholds for a mask by itself."""
    predicted_iou, stability_score = np.array([[mask.predicted_iou], [mask.stability_score]], np.float32)
    return bool(are_good(predicted_iou, stability_score, np.array([mask.area]), params)[0])


def are_good(
    predicted_iou: npt.NDArray[np.float32],
    stability_score: npt.NDArray[np.float32],
    area: npt.NDArray[np.int64],
    params: EverythingParams,
) -> npt.NDArray[np.bool_]:
    """Return which of N masks pass the thresholds for a mask by itself.  A threshold of 0 lets every mask pass."""
    good = area >= params.min_mask_area
    for scores, threshold in (
        (predicted_iou, params.pred_iou_thresh),
        (stability_score, params.stability_score_thresh),
    ):
        if threshold > 0:
            good &= scores > np.float32(threshold)  # float32 against float32, as torch compares
    return good


def is_cut_off(mask: Mask, size_wh: tuple[int, int]) -> bool:
    """Return True if a mask ends at an edge of its crop that is not an edge of the image."""
    box, crop = _corners(mask.bbox_xywh), _edges(mask.crop_box_xywh)
    return any(
        abs(side - crop_edge) <= _EDGE_TOLERANCE_PX and abs(side - image_edge) > _EDGE_TOLERANCE_PX
        for side, crop_edge, image_edge in zip(box, crop, (0, 0, *size_wh), strict=True)
    )


def better_of_overlapping(masks: Sequence[Mask], iou_thresh: float) -> list[int]:
    """Drop masks whose box overlaps that of one with a higher predicted IoU by more than iou_thresh; best first."""
    return _suppress(masks, [mask.predicted_iou for mask in masks], iou_thresh)


def smaller_crop_of_overlapping(masks: Sequence[Mask], iou_thresh: float) -> list[int]:
    """Drop masks whose box overlaps that of one from a smaller crop, where it was seen larger; smallest crops first.

    Masks from crops of the same size keep their order, and earlier ones suppress later ones.
    Source: facebookresearch/segment-anything, automatic_mask_generator.py.
    """
    areas = [mask.crop_box_xywh[2] * mask.crop_box_xywh[3] for mask in masks]
    return _suppress(masks, [1 / area for area in areas], iou_thresh)


def _suppress(masks: Sequence[Mask], scores: Sequence[float], iou_thresh: float) -> list[int]:
    """Of overlapping boxes keep the one with the higher score, or the first; highest scores first."""
    order = np.argsort([-np.float32(score) for score in scores], kind="stable")
    boxes = np.array([_corners(masks[index].bbox_xywh) for index in order], dtype=np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = np.ones(len(boxes), dtype=np.bool_)
    for best in range(len(boxes)):
        if not alive[best]:
            continue
        rest = slice(best + 1, None)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        union = areas[best] + areas[rest] - shared
        with np.errstate(invalid="ignore"):  # two boxes without area give 0/0, which suppresses nothing
            # float32 up to the comparison, then float64: the borderline of torchvision's kernel
            alive[rest] &= ~((shared / union).astype(np.float64) > iou_thresh)
    return [index for index, keep in zip(order.tolist(), alive.tolist(), strict=True) if keep]


def _edges(box_xywh: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


def _corners(box_xywh: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return the first and the last pixel of a box: the corners that the library measures overlaps with."""
    x, y, width, height = box_xywh
    return x, y, x + max(width - 1, 0), y + max(height - 1, 0)
