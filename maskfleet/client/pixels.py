"""From a mask as it is sent, COCO's run-length encoding or polygons, to its pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


def pixels_of_rle(counts: str, size_hw: tuple[int, int]) -> Pixels:
    """Return the pixels of COCO's compressed RLE, (H, W).  Raises ValueError if it is not one of that size."""
    lengths = run_lengths(counts)
    height, width = size_hw
    if lengths.min(initial=0) < 0 or int(lengths.sum()) != height * width:
        raise ValueError(f"This run-length encoding is not one of {width}×{height} pixels.")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def run_lengths(counts: str) -> Integers:
    """Return the lengths of the runs, down the columns, beginning with the background.

    Each number is in groups of five bits, the lowest first, with a bit that says whether another follows; the last
    one's highest bit is the sign.  From the fourth number on, it is the difference from the last but one.
    Source: pycocotools, common/maskApi.c, rleFrString.
    """
    bits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(bits):
        return np.zeros(0, np.int64)
    if bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError("This is not COCO's compressed run-length encoding.")
    last = (bits & 32) == 0
    begins = np.flatnonzero(np.concatenate(([True], last[:-1])))
    groups = np.diff(np.append(begins, len(bits)))
    shift = 5 * (np.arange(len(bits)) - np.repeat(begins, groups))
    numbers = np.add.reduceat((bits & 31) << shift, begins)
    numbers -= np.where(bits[last] & 16, np.int64(1) << (5 * groups), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def pixels_of_polygons(polygons: Sequence[Sequence[int]], size_hw: tuple[int, int]) -> Pixels:
    """Return the pixels that polygons along pixels' edges enclose, (H, W); each is x0, y0, x1, y1, …

    Between two vertical edges of a row a pixel is inside where an odd number of them lies to its left.
    """
    height, width = size_hw
    crossings = np.zeros((height, width + 1), np.bool_)
    for polygon in polygons:
        corners = np.array(polygon, np.int64).reshape(-1, 2)
        for (x, y), (_, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if y != next_y:
                crossings[min(y, next_y) : max(y, next_y), x] ^= True
    inside: Pixels = np.logical_xor.accumulate(crossings, axis=1)[:, :width]
    return inside
