"""Masks from low-resolution logits without full-size pixels: areas, boxes and runs, identical to the library's.

Each column of the original is scanned from top to bottom.  A bilinear mix lies between its two inputs, so where all the
logits that an output depends on (its band, see resampling.py) are on one side of a cut, so is the output: such
stretches are counted whole.  Only stretches at a crossing are computed, value by value, in torch's float32 order.

1. Find the window of logits above the lowest cut, widened by a band's reach (2).  Outside it no pixel is in the mask.
2. Neighbouring columns mostly mix the same two middle columns.  Once per such pair, compute the low-resolution rows of
   both (as torch does first), and for each row how many cuts both exceed, or "undecided" if they differ.
3. This splits the output rows into stretches, decided where the rows of their bands agree.  In the others, measuring
   does the same once more with cells of four middle values, which a few output columns and rows mix.
4. Only in cells that are still undecided, column by column, compute the two middle values that the rows mix; if these
   do not agree either, each output.

Rounding moves a mix past its inputs by parts in 2**24, so "exceeds" keeps a margin of parts in 2**18 of the cut.
Nothing here is of the original's size, and only outputs at a mask's outline cost anything.

All these kernels are in one file: numba's cache does not notice that a kernel in another file has changed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskfleet.worker.masks.kernel import fused_multiply_add, kernel
from maskfleet.worker.masks.resampling import Axis, Grid

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
#: The code of rows on both sides of a cut; other codes are the number of cuts exceeded, 0 to 3.
_UNDECIDED = 4


class Cuts(NamedTuple):
    """Three levels, ascending.

    surely, perhaps: a mix surely exceeds a level if its lower bound exceeds ``surely``, and may exceed it if its upper
    bound exceeds ``perhaps``.
    """

    levels: Floats
    surely: Floats
    perhaps: Floats


@kernel
def measure_masks(
    logits: Floats, grid: Grid, cuts: Cuts, areas: Integers, boxes_xyxy: Integers, windows: Integers
) -> None:
    """Measure (K, h, w) logits into areas above the cuts (K, 3), boxes at the middle cut and windows, both (K, 4)."""
    rows, columns = grid.rows, grid.columns
    for mask in range(len(logits)):
        top, bottom, left, right = _window(logits[mask], cuts.perhaps[0], grid)
        windows[mask, 0], windows[mask, 1], windows[mask, 2], windows[mask, 3] = top, bottom, left, right
        if bottom < top:
            continue
        above, beside = max(0, top - rows.reach), max(0, left - columns.reach)
        below, beyond = bottom + 1 + rows.reach, right + 1 + columns.reach
        transposed = np.ascontiguousarray(logits[mask, above:below, beside:beyond].T)
        box = boxes_xyxy[mask]
        box[0], box[1] = len(columns.band_start), len(rows.band_start)
        measure_transposed(transposed, windows[mask], grid, cuts, areas[mask], box)
        if box[2] == 0:
            box[0] = box[1] = 0


@kernel
def measure_transposed(
    transposed: Floats, window: Integers, grid: Grid, cuts: Cuts, areas: Integers, box: Integers
) -> None:
    """Measure one mask: add to its areas (3,) and widen its box (4,).  transposed: as in ``trace_mask``."""
    rows = grid.rows
    seen, row_start, row_stop, top, left = _extent(window, grid)
    lows, held = np.empty((2, transposed.shape[1]), np.float32), np.full(2, -1)
    codes, starts = np.empty(transposed.shape[1], np.uint8), np.empty(2 * transposed.shape[1] + 2, np.int64)
    kinds, corners = np.empty(len(starts), np.uint8), np.empty((2, 2), np.float32)
    column = seen.start
    while column < seen.stop:
        # All output columns that mix the same two middle columns
        end = min(seen.stop, grid.columns.same_until[column])
        _take_pair(transposed, grid, column, left, held, lows)
        _code_rows(lows, cuts, codes)
        stretches, below = _list_stretches(codes, rows, row_start, row_stop, top, starts, kinds), -1
        for stretch in range(stretches):
            row, stop = starts[stretch], starts[stretch + 1]
            if kinds[stretch] != _UNDECIDED:
                _add_block(areas, box, kinds[stretch], row, stop, column, end)
                continue
            while row < stop:
                until = min(stop, rows.same_until[row])
                if rows.outer.first[row] == below:
                    corners[0, 0], corners[0, 1] = corners[1, 0], corners[1, 1]
                else:
                    _take_row(lows, grid, top, rows.outer.first[row], corners[0])
                below = rows.outer.second[row]
                _take_row(lows, grid, top, below, corners[1])
                code = _code_cell(corners, cuts)
                if code != _UNDECIDED:
                    _add_block(areas, box, code, row, until, column, end)
                else:
                    _measure_cell(corners, grid, cuts, row, until, column, end, areas, box)
                row = until
        column = end


@kernel
def trace_mask(
    transposed: Floats, window: Integers, grid: Grid, cuts: Cuts, image_height: int, image_left: int, image_top: int
) -> Integers:
    """Find where a mask at the middle cut starts and stops, as positions x · image_height + y in an image.

    transposed: the logits of the widened window, columns first.  image_left, image_top: where the grid lies in the
    image.
    """
    rows = grid.rows
    seen, row_start, row_stop, top, left = _extent(window, grid)
    lows, held = np.empty((2, transposed.shape[1]), np.float32), np.full(2, -1)
    codes, starts, stretches = (
        np.empty(transposed.shape[1], np.uint8),
        np.empty(2 * transposed.shape[1] + 2, np.int64),
        0,
    )
    kinds, changes, count = np.empty(len(starts), np.uint8), np.empty(1024, np.int64), 0
    for column in seen:
        if _take_pair(transposed, grid, column, left, held, lows):
            _code_rows(lows, cuts, codes)
            stretches = _list_stretches(codes, rows, row_start, row_stop, top, starts, kinds)
        if len(changes) - count < len(rows.band_start) + 2:
            changes = np.append(changes, np.empty(len(changes) + len(rows.band_start) + 2, np.int64))
        above, inside = (column + image_left) * image_height + image_top, False
        for stretch in range(stretches):
            row, stop = starts[stretch], starts[stretch + 1]
            if kinds[stretch] != _UNDECIDED:
                if (kinds[stretch] > 1) != inside:
                    count, inside = _put(changes, count, above + row), not inside
                continue
            while row < stop:
                until = min(stop, rows.same_until[row])
                upper, lower = _middle_pair(lows, grid, top, row, column)
                code = _code(upper, lower, cuts)
                if code != _UNDECIDED:
                    if (code > 1) != inside:
                        count, inside = _put(changes, count, above + row), not inside
                    row = until
                while row < until:
                    if (_output(upper, lower, grid, row) > cuts.levels[1]) != inside:
                        count, inside = _put(changes, count, above + row), not inside
                    row += 1
        if inside:
            count = _put(changes, count, above + row_stop)
    return changes[:count].copy()


@kernel
def _window(logits: Floats, cut: float, grid: Grid) -> tuple[int, int, int, int]:
    """Return the first and last row and column of logits above a cut that outputs depend on; last < first if none."""
    height, width = grid.rows.band_end[-1] + 1, grid.columns.band_end[-1] + 1
    top, bottom, left, right = height, -1, width, -1
    for y in range(height):
        above = False
        for x in range(width):
            above |= logits[y, x] > cut
        if above:
            top, bottom = min(top, y), y
            x = 0
            while x < left and not logits[y, x] > cut:
                x += 1
            left = min(left, x)
            x = width - 1
            while x > right and not logits[y, x] > cut:
                x -= 1
            right = max(right, x)
    return top, bottom, left, right


@kernel
def _extent(window: Integers, grid: Grid) -> tuple[range, int, int, int, int]:
    """Return the output columns and rows that depend on a window, and where the logits they depend on start."""
    rows, columns = grid.rows, grid.columns
    seen = range(np.searchsorted(columns.band_end, window[2]), np.searchsorted(columns.band_start, window[3] + 1))
    row_start, row_stop = np.searchsorted(rows.band_end, window[0]), np.searchsorted(rows.band_start, window[1] + 1)
    return seen, row_start, row_stop, max(0, window[0] - rows.reach), max(0, window[2] - columns.reach)


@kernel
def _take_pair(transposed: Floats, grid: Grid, column: int, left: int, held: Integers, lows: Floats) -> bool:
    """Load into lows the two middle columns that an output column mixes; False if already there.  held: which are."""
    first, second = grid.columns.outer.first[column], grid.columns.outer.second[column]
    if held[0] == first and held[1] == second:
        return False
    if held[1] == first:
        lows[0, :] = lows[1]
    else:
        _low_column(transposed, grid, first, left, lows[0])
    _low_column(transposed, grid, second, left, lows[1])
    held[0], held[1] = first, second
    return True


@kernel
def _low_column(transposed: Floats, grid: Grid, middle: int, left: int, out: Floats) -> None:
    """Compute a middle column at the window's low-resolution rows."""
    taps = grid.columns.inner
    first, second = transposed[taps.first[middle] - left], transposed[taps.second[middle] - left]
    first_weight, second_weight = taps.first_weight[middle], taps.second_weight[middle]
    for y in range(len(out)):
        out[y] = _mix(grid.fused, first[y], first_weight, second[y], second_weight)


@kernel
def _code_rows(lows: Floats, cuts: Cuts, codes: Codes) -> None:
    for y in range(len(codes)):
        codes[y] = _code(lows[0, y], lows[1, y], cuts)


@kernel
def _list_stretches(codes: Codes, rows: Axis, row: int, row_stop: int, top: int, starts: Integers, kinds: Codes) -> int:
    """Split the output rows from row on into decided and undecided stretches; each ends where the next starts."""
    count, low = 0, 0
    while low < len(codes):
        code, last = codes[low], low
        while last + 1 < len(codes) and codes[last + 1] == code:
            last += 1
        if code != _UNDECIDED:
            start, stop = max(row, rows.first_from[low + top]), min(row_stop, rows.end_until[last + top])
            if start < stop:
                if row < start:
                    starts[count], kinds[count] = row, _UNDECIDED
                    count += 1
                starts[count], kinds[count] = start, code
                count, row = count + 1, stop
        low = last + 1
    if row < row_stop:
        starts[count], kinds[count] = row, _UNDECIDED
        count += 1
    starts[count] = row_stop
    return count


@kernel
def _code(one: float, other: float, cuts: Cuts) -> int:
    low, high = min(one, other), max(one, other)
    certain = (low > cuts.surely[0]) + (low > cuts.surely[1]) + (low > cuts.surely[2])
    possible = (high > cuts.perhaps[0]) + (high > cuts.perhaps[1]) + (high > cuts.perhaps[2])
    return certain if certain == possible else _UNDECIDED


@kernel
def _take_row(lows: Floats, grid: Grid, top: int, middle: int, out: Floats) -> None:
    """Compute a middle row at the two middle columns of lows."""
    taps = grid.rows.inner
    y, z = taps.first[middle] - top, taps.second[middle] - top
    for side in range(2):
        out[side] = _mix(
            grid.fused, lows[side, y], taps.first_weight[middle], lows[side, z], taps.second_weight[middle]
        )


@kernel
def _code_cell(corners: Floats, cuts: Cuts) -> int:
    low = min(min(corners[0, 0], corners[0, 1]), min(corners[1, 0], corners[1, 1]))
    high = max(max(corners[0, 0], corners[0, 1]), max(corners[1, 0], corners[1, 1]))
    return _code(low, high, cuts)


@kernel
def _measure_cell(
    corners: Floats,
    grid: Grid,
    cuts: Cuts,
    start: int,
    stop: int,
    left: int,
    right: int,
    areas: Integers,
    box: Integers,
) -> None:
    """Measure the outputs that mix four middle values, by columns: each has two values, which its rows mix."""
    across = grid.columns.outer
    for column in range(left, right):
        weight, other_weight = across.first_weight[column], across.second_weight[column]
        upper = _mix(grid.fused, corners[0, 0], weight, corners[0, 1], other_weight)
        lower = _mix(grid.fused, corners[1, 0], weight, corners[1, 1], other_weight)
        code = _code(upper, lower, cuts)
        if code != _UNDECIDED:
            _add_block(areas, box, code, start, stop, column, column + 1)
            continue
        for row in range(start, stop):
            value = _output(upper, lower, grid, row)
            areas[0] += value > cuts.levels[0]
            areas[2] += value > cuts.levels[2]
            if value > cuts.levels[1]:
                areas[1] += 1
                _widen(box, row, row + 1, column, column + 1)


@kernel
def _middle_pair(lows: Floats, grid: Grid, top: int, row: int, column: int) -> tuple[float, float]:
    """Return what an output row mixes: the values of its column in two middle rows."""
    rows = grid.rows.outer
    return _middle(lows, grid, top, rows.first[row], column), _middle(lows, grid, top, rows.second[row], column)


@kernel
def _middle(lows: Floats, grid: Grid, top: int, row: int, column: int) -> float:
    taps, across = grid.rows.inner, grid.columns.outer
    y, z, y_weight, z_weight = (
        taps.first[row] - top,
        taps.second[row] - top,
        taps.first_weight[row],
        taps.second_weight[row],
    )
    one = _mix(grid.fused, lows[0, y], y_weight, lows[0, z], z_weight)
    other = _mix(grid.fused, lows[1, y], y_weight, lows[1, z], z_weight)
    return _mix(grid.fused, one, across.first_weight[column], other, across.second_weight[column])


@kernel
def _output(upper: float, lower: float, grid: Grid, row: int) -> float:
    taps = grid.rows.outer
    return _mix(grid.fused, upper, taps.first_weight[row], lower, taps.second_weight[row])


@kernel
def _mix(fused: bool, first: float, first_weight: float, second: float, second_weight: float) -> float:
    product = second * second_weight
    return fused_multiply_add(first, first_weight, product) if fused else first * first_weight + product


@kernel
def _add_block(areas: Integers, box: Integers, code: int, start: int, stop: int, left: int, right: int) -> None:
    """Add outputs of one code, in the rows from start on and the columns from left on."""
    pixels = (stop - start) * (right - left)
    areas[0] += pixels if code > 0 else 0
    areas[1] += pixels if code > 1 else 0
    areas[2] += pixels if code > 2 else 0
    if code > 1:
        _widen(box, start, stop, left, right)


@kernel
def _widen(box: Integers, start: int, stop: int, left: int, right: int) -> None:
    box[0], box[1] = min(box[0], left), min(box[1], start)
    box[2], box[3] = max(box[2], right), max(box[3], stop)


@kernel
def _put(changes: Integers, count: int, position: int) -> int:
    """Append a change; two at the same position, at the end of a column and the start of the next, cancel out."""
    if count and changes[count - 1] == position:
        return count - 1
    changes[count] = position
    return count + 1
