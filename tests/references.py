"""Slow and obvious twins of the fast routines: loops over pixels and pairs, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def resized(image: Floats, size_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Bilinear, each output pixel's centre looked up in the input; beyond the edge the edge pixel goes on."""
    height, width = image.shape
    out = np.empty(size_hw)
    for row in range(size_hw[0]):
        for column in range(size_hw[1]):
            y = max((row + 0.5) * height / size_hw[0] - 0.5, 0.0)
            x = max((column + 0.5) * width / size_hw[1] - 0.5, 0.0)
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            upper = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            lower = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[row, column] = upper * (1 - (y - y0)) + lower * (y - y0)
    return out


def upscaled(
    logits: Floats, padded_hw: tuple[int, int], scaled_hw: tuple[int, int], original_hw: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """A mask's logits on the original: to the model's input, without its padding, to the original's size."""
    return resized(resized(logits, padded_hw)[: scaled_hw[0], : scaled_hw[1]], original_hw)


def stability(logits: Floats, threshold: float, offset: float) -> float:
    """The share of the pixels above the lower cut that are above the upper one too."""
    inner = sum(1 for value in logits.flat if value > threshold + offset)
    outer = sum(1 for value in logits.flat if value > threshold - offset)
    return inner / outer if outer else 0.0


def bounding_box(mask: Bools) -> tuple[int, int, int, int] | None:
    """First and past-the-last column and row of the pixels of a mask."""
    pixels = [(x, y) for y, row in enumerate(mask) for x, inside in enumerate(row) if inside]
    if not pixels:
        return None
    xs, ys = [x for x, _ in pixels], [y for _, y in pixels]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def run_lengths(mask: Bools) -> list[int]:
    """COCO's uncompressed RLE: down the columns, from left to right, beginning with the zeros."""
    counts, value = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != value:
                value = not value
                counts.append(0)
            counts[-1] += 1
    return counts


def suppressed(boxes: Sequence[Sequence[float]], scores: Sequence[float], iou_thresh: float) -> list[int]:
    """Which boxes (x0, y0, x1, y1) stay when each, best first, drops the lesser ones that overlap it."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(_overlap(boxes[index], boxes[other]) <= iou_thresh for other in kept):
            kept.append(index)
    return kept


def suppressed_over_crops(
    boxes: Sequence[Sequence[Sequence[float]]],
    scores: Sequence[Sequence[float]],
    crop_areas: Sequence[float],
    thresh: float,
) -> list[tuple[int, int]]:
    """Which boxes of each crop stay, as (crop, index): first in their crop, then, smaller crops first, of all."""
    in_crops = [
        (crop, index)
        for crop, (own, scored) in enumerate(zip(boxes, scores, strict=True))
        for index in suppressed(own, scored, thresh)
    ]
    rest = [boxes[crop][index] for crop, index in in_crops]
    stay = suppressed(rest, [1 / crop_areas[crop] for crop, _ in in_crops], thresh)
    return [in_crops[number] for number in stay]


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union, rounded to float32 as torchvision's kernel has it when it compares."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    union = areas - width * height
    return float(np.float32(width * height) / np.float32(union)) if union > 0 else 0.0


def labels(masks: Sequence[Bools]) -> npt.NDArray[np.int64]:
    """A label map, pixel by pixel: the id of the smallest mask there; of equal ones the last."""
    out = np.zeros(masks[0].shape, dtype=np.int64)
    areas = [int(mask.sum()) for mask in masks]
    for row, column in np.ndindex(*out.shape):
        here = [number for number, mask in enumerate(masks) if mask[row, column]]
        if here:
            smallest = min(areas[number] for number in here)
            out[row, column] = 1 + max(number for number in here if areas[number] == smallest)
    return out


def cell_middles(points_per_side: int, size_wh: tuple[int, int]) -> list[tuple[float, float]]:
    """The middles of n × n equal cells, row by row."""
    width, height = size_wh
    return [
        ((column + 0.5) * width / points_per_side, (row + 0.5) * height / points_per_side)
        for row in range(points_per_side)
        for column in range(points_per_side)
    ]


def range_shown(values: npt.NDArray[Any], bits: int | None = None) -> tuple[float, float]:
    """Return which values of an image are black and white.  bits: what the file says, where its depth is an odd one."""
    if values.dtype == np.uint8 or bits not in (None, 16, 32, 64):
        return 0, 2 ** (bits or 8) - 1
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0:
        return lowest, highest
    whites = [2.0**n - 1 for n in range(1, 65)]
    if values.dtype.kind == "f":
        whites = [2.0**-n for n in range(100, 0, -1)] + whites
    return 0, next(white for white in whites if white >= highest)


def shown(values: npt.NDArray[Any], bits: int | None = None, min_is_white: bool = False) -> npt.NDArray[np.float64]:
    """Return what an image's values become, 0 to 255, before they are rounded."""
    low, high = range_shown(values, bits)
    share = (values.astype(np.float64) - low) / (high - low)
    return 255 * (1 - share if min_is_white else share)
