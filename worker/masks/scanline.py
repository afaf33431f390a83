"""Masks from low-resolution logits without full-size pixels: areas, boxes and runs, identical to the library's.

A bilinear mix lies between its two inputs, so where all the logits that an output depends on (its band, see
resampling.py) are on one side of a cut, so is the output: such stretches are counted whole.  Only stretches at a
crossing are computed, value by value, in torch's float32 order.  Outside the window of logits above the lowest cut,
widened by a band's reach (2), no pixel is in the mask.

Measuring takes the rows that share a band together.

1. For each low-resolution column, find how many cuts all the band's logits exceed, or "undecided" if they differ.  This
   splits the output columns into stretches, decided where the columns of their bands agree.
2. Neighbouring rows mostly mix the same two middle rows.  Once per such pair, compute the undecided columns of both (as
   torch does first), side by side in one table.
3. An output row is then one loop over that table, without branches, which the compiler makes of vector instructions.

Tracing scans each column from top to bottom.

1. Neighbouring columns mostly mix the same two middle columns.  Once per such pair, compute the low-resolution rows of
   both, and for each row how many cuts both exceed.  This splits the output rows into stretches.
2. In undecided ones, compute the two middle values that a few output rows mix; if these do not agree, each output.

Rounding moves a mix past its inputs by parts in 2**24, so "exceeds" keeps a margin of parts in 2**18 of the cut.
Nothing here is of the original's size, and only outputs at a mask's outline cost anything.

All these kernels are in one file: numba's cache does not notice that a kernel in another file has changed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskfleet.worker.masks.kernel import fused_multiply_add, inlined, kernel
from maskfleet.worker.masks.resampling import Axis, Grid, Taps

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
#: The code of rows on both sides of a cut; other codes are the number of cuts exceeded, 0 to 3.
_UNDECIDED = 4
#: Columns that the compiler's loops take at once: four vectors of eight.  Tables are filled up to a multiple of it.
_AT_ONCE = 32


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
        values = np.ascontiguousarray(logits[mask, above:below, beside:beyond])
        box = boxes_xyxy[mask]
        box[0], box[1] = len(columns.band_start), len(rows.band_start)
        measure_window(values, windows[mask], grid, cuts, areas[mask], box)
        if box[2] == 0:
            box[0] = box[1] = 0


@kernel
def measure_window(values: Floats, window: Integers, grid: Grid, cuts: Cuts, areas: Integers, box: Integers) -> None:
    """Measure one mask: add to its areas (3,) and widen its box (4,).

    values: (rows, columns), the logits of the widened window.
    """
    rows, columns = grid.rows, grid.columns
    seen, row, row_stop, top, left = _extent(window, grid)
    if seen.start == seen.stop:
        return
    codes, starts = np.empty(values.shape[1], np.uint8), np.empty(2 * values.shape[1] + 2, np.int64)
    kinds = np.empty(len(starts), np.uint8)
    middle_start, middle_stop = _middle_range(columns, seen.start, seen.stop)
    # Of the last two low-resolution rows, of one middle row, and of the last two middle rows at the undecided columns
    lows, held_lows = np.empty((2, middle_stop), np.float32), np.full(2, -1)
    middle = np.empty(middle_stop, np.float32)
    spread, held = np.empty((2, seen.stop - seen.start + _AT_ONCE), np.float32), np.empty(2, np.int64)
    while row < row_stop:
        band_stop = _same_band_until(rows, row, row_stop)
        _code_columns(values, rows.band_start[row] - top, rows.band_end[row] + 1 - top, cuts, codes)
        stretches = _list_stretches(codes, columns, seen.start, seen.stop, left, starts, kinds)
        count = 0
        for stretch in range(stretches):
            if kinds[stretch] == _UNDECIDED:
                count += starts[stretch + 1] - starts[stretch]
            else:
                _add_block(areas, box, kinds[stretch], row, band_stop, starts[stretch], starts[stretch + 1])
        filled = (count + _AT_ONCE - 1) // _AT_ONCE * _AT_ONCE
        spread[:, count:filled] = np.nan  # above no cut
        held[:] = -1
        if not count:
            row = band_stop
        while row < band_stop:
            # All output rows that mix the same two middle rows
            until = rows.outer.same_until[row]
            above, below = rows.outer.first[row], rows.outer.second[row]
            for middle_row in (above, below):
                place = middle_row & 1  # at most one apart
                if held[place] != middle_row:
                    held[place] = middle_row
                    _take_middle_row(values, grid, middle_row, top, left, middle_start, held_lows, lows, middle)
                    _spread(middle, columns.outer, grid.fused, kinds, starts, stretches, spread[place])
            upper, lower = spread[above & 1], spread[below & 1]
            inside = _count_rows(upper, lower, filled, rows.outer, grid.fused, row, until, cuts, areas, box)
            if inside:
                at = 0
                for stretch in range(stretches):
                    if kinds[stretch] == _UNDECIDED:
                        start, stop = starts[stretch], starts[stretch + 1]
                        if start < box[0] or stop > box[2]:
                            there = slice(at, at + stop - start)
                            _widen_columns(
                                upper[there], lower[there], rows.outer, grid.fused, row, until, start, cuts, box
                            )
                        at += stop - start
            row = until


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
                until = min(stop, rows.outer.same_until[row])
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


@inlined
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


@inlined
def _extent(window: Integers, grid: Grid) -> tuple[range, int, int, int, int]:
    """Return the output columns and rows that depend on a window, and where the logits they depend on start."""
    rows, columns = grid.rows, grid.columns
    seen = range(np.searchsorted(columns.band_end, window[2]), np.searchsorted(columns.band_start, window[3] + 1))
    row_start, row_stop = np.searchsorted(rows.band_end, window[0]), np.searchsorted(rows.band_start, window[1] + 1)
    return seen, row_start, row_stop, max(0, window[0] - rows.reach), max(0, window[2] - columns.reach)


@inlined
def _take_pair(transposed: Floats, grid: Grid, column: int, left: int, held: Integers, lows: Floats) -> bool:
    """Load into lows the two middle columns that an output column mixes; False if already there.  held: which are."""
    first, second = grid.columns.outer.first[column], grid.columns.outer.second[column]
    if held[0] == first and held[1] == second:
        return False
    if held[1] == first:
        for y in range(lows.shape[1]):
            lows[0, y] = lows[1, y]
    else:
        _low_column(transposed, grid, first, left, lows[0])
    _low_column(transposed, grid, second, left, lows[1])
    held[0], held[1] = first, second
    return True


@inlined
def _low_column(transposed: Floats, grid: Grid, middle: int, left: int, out: Floats) -> None:
    """Compute a middle column at the window's low-resolution rows."""
    taps = grid.columns.inner
    first, second = transposed[taps.first[middle] - left], transposed[taps.second[middle] - left]
    first_weight, second_weight = taps.first_weight[middle], taps.second_weight[middle]
    for y in range(len(out)):
        out[y] = _mix(grid.fused, first[y], first_weight, second[y], second_weight)


@inlined
def _code_rows(lows: Floats, cuts: Cuts, codes: Codes) -> None:
    for y in range(len(codes)):
        codes[y] = _code(lows[0, y], lows[1, y], cuts)


@inlined
def _list_stretches(codes: Codes, axis: Axis, at: int, end: int, first: int, starts: Integers, kinds: Codes) -> int:
    """Split an axis's outputs, from at to end, into decided and undecided stretches; each ends where the next starts.

    codes: of the low-resolution coordinates from first on.
    """
    count, low = 0, 0
    while low < len(codes):
        code, last = codes[low], low
        while last + 1 < len(codes) and codes[last + 1] == code:
            last += 1
        if code != _UNDECIDED:
            start, stop = max(at, axis.first_from[low + first]), min(end, axis.end_until[last + first])
            if start < stop:
                if at < start:
                    starts[count], kinds[count] = at, _UNDECIDED
                    count += 1
                starts[count], kinds[count] = start, code
                count, at = count + 1, stop
        low = last + 1
    if at < end:
        starts[count], kinds[count] = at, _UNDECIDED
        count += 1
    starts[count] = end
    return count


@inlined
def _code(one: float, other: float, cuts: Cuts) -> int:
    low, high = min(one, other), max(one, other)
    certain = (low > cuts.surely[0]) + (low > cuts.surely[1]) + (low > cuts.surely[2])
    possible = (high > cuts.perhaps[0]) + (high > cuts.perhaps[1]) + (high > cuts.perhaps[2])
    return certain if certain == possible else _UNDECIDED


@inlined
def _middle_range(axis: Axis, start: int, stop: int) -> tuple[int, int]:
    """Return the middle coordinates that outputs mix, the last one excluded."""
    first, second = axis.outer.first, axis.outer.second
    return min(first[start], second[start]), max(first[stop - 1], second[stop - 1]) + 1


@inlined
def _same_band_until(rows: Axis, row: int, row_stop: int) -> int:
    """Return the next output row that depends on other low-resolution rows."""
    start, end = rows.band_start[row], rows.band_end[row]
    while row < row_stop and rows.band_start[row] == start and rows.band_end[row] == end:
        row = rows.outer.same_until[row]
    return row


@inlined
def _code_columns(values: Floats, start: int, stop: int, cuts: Cuts, codes: Codes) -> None:
    """Code the columns by the rows from start on."""
    surely, perhaps = cuts.surely, cuts.perhaps
    for x in range(len(codes)):
        low = high = values[start, x]
        for y in range(start + 1, stop):
            low, high = min(low, values[y, x]), max(high, values[y, x])
        certain = (low > surely[0]) + (low > surely[1]) + (low > surely[2])
        possible = (high > perhaps[0]) + (high > perhaps[1]) + (high > perhaps[2])
        codes[x] = certain if certain == possible else _UNDECIDED


@inlined
def _take_middle_row(
    values: Floats,
    grid: Grid,
    middle_row: int,
    top: int,
    left: int,
    start: int,
    held: Integers,
    lows: Floats,
    out: Floats,
) -> None:
    """Compute a middle row at the middle columns from start on.  lows: rows that were needed last; held: which."""
    taps, across = grid.rows.inner, grid.columns.inner
    first, second = taps.first[middle_row], taps.second[middle_row]
    for y in (first, second):
        place = y & 1
        if held[place] != y:
            held[place] = y
            _take_step(values[y - top], left, across, grid.fused, start, len(out), lows[place], 0)
    weights = taps.first_weight[middle_row], taps.second_weight[middle_row]
    _mix_rows(lows[first & 1], lows[second & 1], weights, grid.fused, start, out)


@inlined
def _mix_rows(one: Floats, other: Floats, weights: tuple[float, float], fused: bool, start: int, out: Floats) -> None:
    """Mix two rows from start on."""
    weight, other_weight = weights
    if fused:
        for x in range(start, len(out)):
            out[x] = fused_multiply_add(one[x], weight, other[x] * other_weight)
    else:
        for x in range(start, len(out)):
            out[x] = one[x] * weight + other[x] * other_weight


@inlined
def _spread(
    middle: Floats, taps: Taps, fused: bool, kinds: Codes, starts: Integers, stretches: int, out: Floats
) -> None:
    """Compute a middle row at the output columns of undecided stretches, one after the other."""
    at = 0
    for stretch in range(stretches):
        if kinds[stretch] == _UNDECIDED:
            start, stop = starts[stretch], starts[stretch + 1]
            _take_step(middle, 0, taps, fused, start, stop, out, at - start)
            at += stop - start


@inlined
def _take_step(
    values: Floats, left: int, taps: Taps, fused: bool, start: int, stop: int, out: Floats, shift: int
) -> None:
    """Take a bilinear step along a line, to the coordinates from start on.  left: of values.  shift: to places in out.

    By the outputs that mix the same two: a processor loads values from computed places one by one, slowly.
    """
    column = start
    while column < stop:
        until = min(stop, taps.same_until[column])
        one, other = values[taps.first[column] - left], values[taps.second[column] - left]
        if fused:
            for x in range(column, until):
                out[x + shift] = fused_multiply_add(one, taps.first_weight[x], other * taps.second_weight[x])
        else:
            for x in range(column, until):
                out[x + shift] = one * taps.first_weight[x] + other * taps.second_weight[x]
        column = until


@inlined
def _count_rows(
    upper: Floats,
    lower: Floats,
    count: int,
    taps: Taps,
    fused: bool,
    start: int,
    stop: int,
    cuts: Cuts,
    areas: Integers,
    box: Integers,
) -> int:
    """Add the outputs that mix two rows; widen the box to their rows; return how many are above the middle cut."""
    inside = 0
    for row in range(start, stop):
        outer, middle, inner = _count_above(
            upper, taps.first_weight[row], lower, taps.second_weight[row], count, fused, cuts.levels
        )
        areas[0] += outer
        areas[1] += middle
        areas[2] += inner
        inside += middle
        if middle:
            box[1], box[3] = min(box[1], row), max(box[3], row + 1)
    return inside


@inlined
def _count_above(
    upper: Floats, weight: float, lower: Floats, other_weight: float, count: int, fused: bool, levels: Floats
) -> tuple[int, int, int]:
    """Count a row's outputs above each level.  In 32 bits: as many at once as there are values in a vector."""
    lowest, level, highest = levels[0], levels[1], levels[2]
    outer = middle = inner = np.int32(0)
    if fused:
        for x in range(count):
            value = fused_multiply_add(upper[x], weight, lower[x] * other_weight)
            outer = np.int32(outer + np.int32(value > lowest))
            middle = np.int32(middle + np.int32(value > level))
            inner = np.int32(inner + np.int32(value > highest))
    else:
        for x in range(count):
            value = upper[x] * weight + lower[x] * other_weight
            outer = np.int32(outer + np.int32(value > lowest))
            middle = np.int32(middle + np.int32(value > level))
            inner = np.int32(inner + np.int32(value > highest))
    return int(outer), int(middle), int(inner)


@inlined
def _widen_columns(
    upper: Floats,
    lower: Floats,
    taps: Taps,
    fused: bool,
    row: int,
    until: int,
    left: int,
    cuts: Cuts,
    box: Integers,
) -> None:
    """Widen the box to those columns, from left on, with outputs above the middle cut."""
    x, count = 0, len(upper)
    while x < count and left + x < box[0]:
        if _is_any_above(upper[x], lower[x], taps, fused, row, until, cuts):
            box[0] = left + x
        x += 1
    x = count - 1
    while x >= 0 and left + x >= box[2]:
        if _is_any_above(upper[x], lower[x], taps, fused, row, until, cuts):
            box[2] = left + x + 1
        x -= 1


@inlined
def _is_any_above(upper: float, lower: float, taps: Taps, fused: bool, start: int, stop: int, cuts: Cuts) -> bool:
    if max(upper, lower) > cuts.perhaps[1]:
        for row in range(start, stop):
            if _mix(fused, upper, taps.first_weight[row], lower, taps.second_weight[row]) > cuts.levels[1]:
                return True
    return False


@inlined
def _middle_pair(lows: Floats, grid: Grid, top: int, row: int, column: int) -> tuple[float, float]:
    """Return what an output row mixes: the values of its column in two middle rows."""
    rows = grid.rows.outer
    return _middle(lows, grid, top, rows.first[row], column), _middle(lows, grid, top, rows.second[row], column)


@inlined
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


@inlined
def _output(upper: float, lower: float, grid: Grid, row: int) -> float:
    taps = grid.rows.outer
    return _mix(grid.fused, upper, taps.first_weight[row], lower, taps.second_weight[row])


@inlined
def _mix(fused: bool, first: float, first_weight: float, second: float, second_weight: float) -> float:
    product = second * second_weight
    return fused_multiply_add(first, first_weight, product) if fused else first * first_weight + product


@inlined
def _add_block(areas: Integers, box: Integers, code: int, start: int, stop: int, left: int, right: int) -> None:
    """Add outputs of one code, in the rows from start on and the columns from left on."""
    pixels = (stop - start) * (right - left)
    areas[0] += pixels if code > 0 else 0
    areas[1] += pixels if code > 1 else 0
    areas[2] += pixels if code > 2 else 0
    if code > 1:
        _widen(box, start, stop, left, right)


@inlined
def _widen(box: Integers, start: int, stop: int, left: int, right: int) -> None:
    box[0], box[1] = min(box[0], left), min(box[1], start)
    box[2], box[3] = max(box[2], right), max(box[3], stop)


@inlined
def _put(changes: Integers, count: int, position: int) -> int:
    """Append a change; two at the same position, at the end of a column and the start of the next, cancel out."""
    if count and changes[count - 1] == position:
        return count - 1
    changes[count] = position
    return count + 1
