"""Candidates made into masks on the original's pixels: measured, filtered, written as RLE, suppressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import interpolate

from worker.crops import Crop
from worker.decoder import Candidates
from worker.embedding import Frame
from worker.prompts import PromptBatch

#: Full-size logits that are held at once: bounds memory on large images and costs nothing on small ones.
_UPSCALED_BYTES = 64 * 2**20
#: A box this near to its crop's edge counts as cut off by it, in pixels; from the original's generator.
_EDGE_TOLERANCE_PX = 20


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask on the original image, with SA-1B's measures.

    counts: COCO's compressed RLE, for size_hw.  bbox_xywh: COCO's box, from the first pixel to past the last,
    so a mask of one pixel is 1 wide (SA-1B's own boxes end one pixel earlier); an empty mask's has no size.
    stability_score: in [0, 1].  predicted_iou: the model's guess, not bounded.  point_coords: the points
    given, or the point of the grid.  crop_box_xywh: the part of the image that was looked at.
    prompt: index into the job's prompts, None in mode everything.  candidate: 0 to 2 with multimask, else None.
    logits: (h, w) at the model's low resolution, of the crop; only where they were asked for.
    """

    counts: str
    size_hw: tuple[int, int]
    area: int
    bbox_xywh: tuple[float, float, float, float]
    predicted_iou: float
    stability_score: float
    point_coords: tuple[tuple[float, float], ...]
    crop_box_xywh: tuple[float, float, float, float]
    prompt: int | None
    candidate: int | None
    logits: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where logits are cut, and how stable a mask must be under a shift of the cut; 0 takes them all."""

    threshold: float
    stability_offset: float = 1.0
    stability_thresh: float = 0.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Candidates worth upscaling.  rows: of the prompt in its batch; columns: of the candidate; both (K,)."""

    rows: Tensor
    columns: Tensor


def choose_promising(candidates: Candidates, pred_iou_thresh: float) -> Chosen:
    """Keep candidates of a predicted IoU above the threshold; 0 keeps all, as in transformers."""
    promising = (
        candidates.predicted_iou > pred_iou_thresh if pred_iou_thresh > 0 else candidates.predicted_iou.isfinite()
    )
    rows, columns = promising.nonzero(as_tuple=True)
    return Chosen(rows, columns)


def choose_best(candidates: Candidates) -> Chosen:
    """Keep each prompt's candidate of the highest predicted IoU."""
    columns = candidates.predicted_iou.argmax(dim=1)
    return Chosen(torch.arange(len(columns), device=columns.device), columns)


def choose_all(candidates: Candidates) -> Chosen:
    """Keep all candidates in the model's order."""
    rows, columns = torch.ones_like(candidates.predicted_iou).nonzero(as_tuple=True)
    return Chosen(rows, columns)


def make_masks(
    candidates: Candidates,
    chosen: Chosen,
    batch: PromptBatch,
    frame: Frame,
    crop: Crop,
    size_wh: tuple[int, int],
    cut: Cut,
) -> Iterator[tuple[int, int, Mask]]:
    """Upscale chosen candidates, a few at a time, and measure them; give (row, column, mask) of the stable ones.

    The masks name neither prompt nor candidate yet: that is for the mode to say.
    """
    height, width = frame.original_hw
    at_once = max(1, _UPSCALED_BYTES // (4 * height * width))
    left, top, right, bottom = crop.box_xyxy
    for start in range(0, len(chosen.rows), at_once):
        rows, columns = chosen.rows[start : start + at_once], chosen.columns[start : start + at_once]
        logits = upscale(candidates.logits(rows, columns), frame)
        scores = stability(logits, cut.threshold, cut.stability_offset)
        stable = (
            scores > cut.stability_thresh if cut.stability_thresh > 0 else torch.ones_like(scores, dtype=torch.bool)
        )
        for index in stable.nonzero()[:, 0].tolist():
            inside = (logits[index] > cut.threshold).cpu().numpy()
            row, column = int(rows[index]), int(columns[index])
            box_xyxy = bounding_box(inside)
            yield (
                row,
                column,
                Mask(
                    counts=encode(inside, crop, size_wh),
                    size_hw=(size_wh[1], size_wh[0]),
                    area=int(np.count_nonzero(inside)),
                    bbox_xywh=_xywh(box_xyxy, left, top),
                    predicted_iou=float(candidates.predicted_iou[row, column]),
                    stability_score=float(scores[index]),
                    point_coords=batch.asked_xy[row],
                    crop_box_xywh=(left, top, right - left, bottom - top),
                    prompt=None,
                    candidate=None,
                ),
            )


def upscale(logits: Tensor, frame: Frame) -> Tensor:
    """Bring logits to the original's size: bilinear to the model's input, padding off, bilinear again.

    logits: (K, h, w).  Returns (K, H, W).
    """
    if not frame.keeps_aspect:
        return interpolate(logits[None], frame.original_hw, mode="bilinear", align_corners=False)[0]
    height, width = frame.scaled_hw
    in_input = interpolate(logits[None], frame.padded_hw, mode="bilinear", align_corners=False)
    return interpolate(in_input[..., :height, :width], frame.original_hw, mode="bilinear", align_corners=False)[0]


def stability(logits: Tensor, threshold: float, offset: float) -> Tensor:
    """Score how little each mask changes when its cut shifts by ±offset: the inner area over the outer.

    logits: (K, H, W).  Returns (K,) in [0, 1]; 0 for an empty mask, where transformers has 0/0.
    Source: Kirillov et al. 2023, "Segment Anything", section 5 and appendix B.
    """
    inner = (logits > threshold + offset).flatten(1).sum(1)
    outer = (logits > threshold - offset).flatten(1).sum(1)
    return torch.where(outer > 0, inner / outer.clamp(min=1), 0.0)


def bounding_box(inside: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """The box (x0, y0, x1, y1) of a mask's pixels, x1 and y1 past the last; None for an empty mask."""
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode(inside: npt.NDArray[np.bool_], crop: Crop, size_wh: tuple[int, int]) -> str:
    """Write a crop's mask as COCO's compressed RLE over the whole image."""
    left, top, right, bottom = crop.box_xyxy
    canvas = np.zeros((size_wh[1], size_wh[0]), dtype=np.uint8, order="F")
    canvas[top:bottom, left:right] = inside
    counts = coco_mask.encode(canvas)["counts"]
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def decode_rle(mask: Mask) -> npt.NDArray[np.bool_]:
    """Read a mask's pixels back.  Returns (H, W)."""
    pixels: npt.NDArray[np.uint8]
    pixels = coco_mask.decode({"size": list(mask.size_hw), "counts": mask.counts.encode("ascii")})
    return pixels.astype(np.bool_)


def is_cut_off(mask: Mask, size_wh: tuple[int, int]) -> bool:
    """Whether a mask ends at an edge of its crop that is not an edge of the image."""
    box, crop = _corners(mask.bbox_xywh), _edges(mask.crop_box_xywh)
    return any(
        abs(side - crop_edge) <= _EDGE_TOLERANCE_PX and abs(side - image_edge) > _EDGE_TOLERANCE_PX
        for side, crop_edge, image_edge in zip(box, crop, (0, 0, *size_wh), strict=True)
    )


def suppress(masks: Sequence[Mask], iou_thresh: float) -> tuple[Mask, ...]:
    """Drop masks whose box overlaps a better mask's by more than iou_thresh; the best first.

    Over all crops at once, as transformers does; the generator of the original works inside each crop first and
    then prefers the smaller crop.
    """
    if not masks:
        return ()
    order = np.argsort([-mask.predicted_iou for mask in masks], kind="stable")
    boxes = np.array([_corners(masks[index].bbox_xywh) for index in order], dtype=np.float32)
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
    return tuple(masks[index] for index, keep in zip(order.tolist(), alive.tolist(), strict=True) if keep)


def _xywh(box_xyxy: tuple[int, int, int, int] | None, left: int, top: int) -> tuple[float, float, float, float]:
    if box_xyxy is None:
        return (left, top, 0, 0)
    x0, y0, x1, y1 = box_xyxy
    return (left + x0, top + y0, x1 - x0, y1 - y0)


def _edges(box_xywh: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


def _corners(box_xywh: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The first and the last pixel of a box: the corners that the library measures overlaps with."""
    x, y, width, height = box_xywh
    return x, y, x + max(width - 1, 0), y + max(height - 1, 0)
