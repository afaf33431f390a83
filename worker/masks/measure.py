"""Measure masks from their logits, and keep just the logits that are needed to trace them later."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskfleet.worker.masks.resampling import BilinearMap, one_step
from maskfleet.worker.masks.scanline import Cuts, Floats, Integers, measure_masks, measure_window, trace_mask

#: How far values must exceed a cut so that their mixes surely do: a fraction of the cut, and for cuts of 0 a least
#: distance, below which products would underflow.
_MARGIN, _LEAST_MARGIN = np.float32(2**-18), np.float32(1e-30)
#: Masks that a thread takes at once: few, since masks differ in size and so in work, and threads are to end together.
_MASKS_A_PART = 4


@dataclass(frozen=True, slots=True)
class Measures:
    """The measures of K masks on the image or crop that the geometry maps to.

    areas: (K, 3), pixels above threshold - offset, threshold, threshold + offset.  boxes_xyxy: (K, 4), past the last
    pixel; all 0 for an empty mask.  windows: (K, 4), first and last row, first and last column of the logits that
    matter; last < first if none do.
    """

    areas: Integers
    boxes_xyxy: Integers
    windows: Integers


@dataclass(frozen=True, slots=True)
class LogitsWindow:
    """The logits that a mask is traced from: a few kilobytes, since most masks are small.

    window: as measured.  transposed: (columns, rows), the window, widened as far as pixels inside it depend on.
    """

    window: Integers
    transposed: Floats


#: The outline of a mask that has been written: nothing is left to trace.
NO_LOGITS_WINDOW = LogitsWindow(np.array([0, -1, 0, -1]), np.zeros((0, 0), np.float32))


def measure(logits: Floats, bilinear_map: BilinearMap, threshold: float, offset: float, threads: int = 1) -> Measures:
    """Measure masks without rendering them.  logits: (K, h, w), as returned by ``bilinear_map.prepare``."""
    count = len(logits)
    measures = Measures(np.zeros((count, 3), np.int64), np.zeros((count, 4), np.int64), np.zeros((count, 4), np.int64))
    cuts = _cuts(threshold - offset, threshold, threshold + offset)

    def part(start: int) -> None:
        mine = slice(start, start + size)
        tables = (measures.areas[mine], measures.boxes_xyxy[mine], measures.windows[mine])
        measure_masks(logits[mine], bilinear_map.grid, cuts, *tables)

    # Parts of a few masks each, because masks differ in size and so in work.
    size = max(1, count) if threads == 1 else _MASKS_A_PART
    if count <= size:
        part(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(0, count, size)))
    return measures


def stability(measures: Measures) -> npt.NDArray[np.float32]:
    """Score how little each mask changes when its cut shifts by ±offset: the inner area over the outer.

    Returns (K,) in [0, 1]; 0 for an empty mask, where transformers has 0/0.
    Source: Kirillov et al. 2023, "Segment Anything", section 5 and appendix B.
    """
    outer, _, inner = measures.areas.astype(np.float32).T
    scores: npt.NDArray[np.float32] = inner / np.maximum(outer, np.float32(1))
    return scores


def keep_logits_window(logits: Floats, window: Integers, bilinear_map: BilinearMap) -> LogitsWindow:
    """Copy the part of one mask's logits (h, w) that is needed to trace it later.  window: as measured."""
    top, bottom, left, right = window.tolist()
    above, beside = bilinear_map.grid.rows.reach, bilinear_map.grid.columns.reach
    part = logits[max(0, top - above) : bottom + 1 + above, max(0, left - beside) : right + 1 + beside]
    return LogitsWindow(window.copy(), np.array(part.T, order="C"))


def trace(
    logits_window: LogitsWindow,
    bilinear_map: BilinearMap,
    threshold: float,
    image_height: int,
    offset_xy: tuple[int, int] = (0, 0),
) -> Integers:
    """Find where a mask starts and stops down the columns of the image.

    threshold: as measured.  offset_xy: where the geometry's part lies in the image.
    Returns positions x · image_height + y, ascending: pixels from the first up to, but not including, the
    second are inside, and so on.
    """
    if logits_window.window[1] < logits_window.window[0]:
        return np.zeros(0, np.int64)
    cuts = _cuts(threshold, threshold, threshold)
    return trace_mask(logits_window.transposed, logits_window.window, bilinear_map.grid, cuts, image_height, *offset_xy)


def count_near(logits_window: LogitsWindow, bilinear_map: BilinearMap, threshold: float, distance: float) -> int:
    """Count a mask's pixels whose logits are above threshold - distance and not above threshold + distance.

    If it was measured with an offset smaller than the distance, some of those below the threshold may be missed.
    """
    if logits_window.window[1] < logits_window.window[0]:
        return 0
    cuts, areas = _cuts(threshold - distance, threshold, threshold + distance), np.zeros(3, np.int64)
    values = np.ascontiguousarray(logits_window.transposed.T)
    measure_window(values, logits_window.window, bilinear_map.grid, cuts, areas, np.zeros(4, np.int64))
    return int(areas[0] - areas[2])


def warm_up() -> None:
    """Compile the kernels, or load them from the cache; the first time takes seconds."""
    bilinear_map, logits = one_step((4, 4), (200, 200)), np.ones((1, 4, 4), np.float32)
    measures = measure(logits, bilinear_map, 0.0, 1.0)
    logits_window = keep_logits_window(logits[0], measures.windows[0], bilinear_map)
    trace(logits_window, bilinear_map, 0.0, 200)
    count_near(logits_window, bilinear_map, 0.0, 1.0)


def _cuts(*levels: float) -> Cuts:
    rounded = np.array(levels, dtype=np.float64).astype(np.float32)  # as torch compares with them
    margins = np.abs(rounded) * _MARGIN + _LEAST_MARGIN
    return Cuts(rounded, rounded + margins, rounded - margins)
