"""A mask's outline as polygons, exactly along the edges of its pixels.

Each piece of the mask, whose pixels touch by their edges, becomes one polygon: either an outline and those of its holes
(`mask_pieces`), or a single line (`mask_polygons`).  In that, a hole is joined to the outline around it by a slit of no
width, along the row's edge to its left: such a polygon encloses the same pixels whether a program fills it by the
even-odd rule, by the winding rule or as one of several to be united, as COCO's tools do.

Runs go down the columns (see `rle`), so every run has two horizontal edges, each one pixel long.  A mask's outline
consists of these and of the vertical segments between them, on the lines between columns, where only one of the two
columns is in the mask.  It is followed with the mask on the right: above a run to the right, below it to the left, on
the mask's right side down, on its left side up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
#: x0, y0, x1, y1, …: COCO's form of a polygon.
Polygon = tuple[int, ...]

#: The most runs whose outline is followed; about 0.3 s.
MAX_RUNS = 200_000


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a mask: its outline, and those of its holes.

    None of them meets itself, not even by a corner; two of one piece may share corners.  In numbers, that is with y
    upwards, the outline runs counter-clockwise and the holes clockwise, as in GeoJSON (RFC 7946, 3.1.6).
    """

    outline: Polygon
    holes: tuple[Polygon, ...]


@dataclass(frozen=True, slots=True)
class _Runs:
    """A mask's runs, each within one column, in order.  top, bottom: from this row on, and up to that one."""

    column: Integers
    top: Integers
    bottom: Integers


@dataclass(frozen=True, slots=True)
class _Segments:
    """The outline's vertical segments, by line and then from the top.

    x: the line.  begins, ends: rows, in the direction in which the outline is followed.  after: the segment that comes
    next on the outline.
    """

    x: list[int]
    begins: list[int]
    ends: list[int]
    after: list[int]


def mask_polygons(counts: str, size_hw: tuple[int, int], max_corners: int) -> tuple[Polygon, ...] | None:
    """Return a mask's polygons; None if they have more corners than that.  counts: COCO's compressed RLE.

    x and y are those of pixels' corners: the first pixel covers (0, 0) to (1, 1).
    """
    traced = _traced(counts, size_hw)
    if traced is None or 2 * len(traced[0].x) > max_corners:
        return None
    return _joined(*traced, size_hw)


def mask_pieces(counts: str, size_hw: tuple[int, int]) -> tuple[Piece, ...] | None:
    """Return a mask's pieces, with their holes apart; None if it has more than MAX_RUNS runs.  Else as above."""
    traced = _traced(counts, size_hw)
    return None if traced is None else _pieces(*traced, size_hw)


def pieces_of_runs(column: Integers, top: Integers, bottom: Integers, size_hw: tuple[int, int]) -> tuple[Piece, ...]:
    """Return the pieces of a mask that is given by its runs, each within one column, in order and apart."""
    runs = _Runs(column, top, bottom)
    return _pieces(_segments(runs), runs, size_hw)


def _traced(counts: str, size_hw: tuple[int, int]) -> tuple[_Segments, _Runs] | None:
    if len(counts) > 4 * MAX_RUNS:
        return None
    runs = _runs_by_column(_run_lengths(counts), size_hw[0])
    if len(runs.column) > MAX_RUNS:
        return None
    return _segments(runs), runs


def _run_lengths(counts: str) -> list[int]:
    """Read the runs' lengths, the first of them of background.  Source: cocoapi, common/maskApi.c, rleFrString."""
    lengths: list[int] = []
    length = shift = 0
    for byte in counts.encode("ascii"):
        digit = byte - 48
        length |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:
            if digit & 0x10:
                length |= -1 << shift
            lengths.append(length + lengths[-2] if len(lengths) > 2 else length)
            length = shift = 0
    return lengths


def _runs_by_column(lengths: list[int], height: int) -> _Runs:
    """Cut runs, which may go on from one column's end to the next one's begin, at the columns."""
    stops = np.cumsum(lengths, dtype=np.int64)
    ends = stops[1::2]
    starts = stops[0::2][: len(ends)]
    first, last = starts // height, (ends - 1) // height
    parts = last - first + 1
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    column = np.repeat(first, parts) + number
    top = np.where(number == 0, np.repeat(starts, parts) - column * height, 0)
    bottom = np.where(column == np.repeat(last, parts), np.repeat(ends, parts) - column * height, height)
    return _Runs(column, top, bottom)


def _segments(runs: _Runs) -> _Segments:
    """Find the vertical segments, and which comes after which.

    A run's upper edge has the number 2 i, its lower one 2 i + 1.  On each line, an edge that arrives there is followed
    by one that departs: straight on, where both columns begin, or end, in the same row, or along a segment.
    """
    count = len(runs.column)
    upper = 2 * np.arange(count)
    edge = np.concatenate([upper, upper + 1, upper, upper + 1])
    # Of the line to a run's right, its upper edge arrives and its lower one departs; of that to its left, vice versa.
    line = np.concatenate([runs.column + 1, runs.column + 1, runs.column, runs.column])
    row = np.concatenate([runs.top, runs.bottom, runs.top, runs.bottom])
    begins = np.repeat([True, False, True, False], count)
    arrives = np.repeat([True, False, False, True], count)
    # Where one column's run ends and the other's begins, the end comes first: the two touch by a corner only, and each
    # segment belongs to its own run.
    order = np.lexsort((begins, row, line))
    edge, line, row, begins, arrives = (values[order] for values in (edge, line, row, begins, arrives))

    same = (line[1:] == line[:-1]) & (row[1:] == row[:-1]) & (begins[1:] == begins[:-1])
    onward = np.full(2 * count, -1)
    one, other = same.nonzero()[0], same.nonzero()[0] + 1
    onward[edge[np.where(arrives[one], one, other)]] = edge[np.where(arrives[one], other, one)]

    turning = np.ones(len(edge), bool)
    turning[one] = turning[other] = False
    left = turning.nonzero()[0]
    upper_end, lower_end = left[0::2], left[1::2]
    start = np.where(arrives[upper_end], upper_end, lower_end)
    stop = np.where(arrives[upper_end], lower_end, upper_end)
    return _Segments(
        x=line[start].tolist(),
        begins=row[start].tolist(),
        ends=row[stop].tolist(),
        after=_followed(edge[stop], edge[start], onward),
    )


def _followed(departing: Integers, arriving: Integers, onward: Integers) -> list[int]:
    """Return which segment comes after each: where the edge that departs from it arrives, maybe by others."""
    straight = onward.tolist()
    segment_at = dict(zip(arriving.tolist(), range(len(arriving)), strict=True))
    after = []
    for edge in departing.tolist():
        while straight[edge] >= 0:
            edge = straight[edge]
        after.append(segment_at[edge])
    return after


def _joined(segments: _Segments, runs: _Runs, size_hw: tuple[int, int]) -> tuple[Polygon, ...]:
    """Return the outlines of the mask's pieces, each joined with those of its holes."""
    # Two corners for each segment: 2 i where it begins and 2 i + 1 where it ends.
    xs = [x for x in segments.x for _ in range(2)]
    ys = [y for pair in zip(segments.begins, segments.ends, strict=True) for y in pair]
    after = [corner for number, follower in enumerate(segments.after) for corner in (2 * number + 1, 2 * follower)]
    before = {follower: number for number, follower in enumerate(segments.after)}

    def corner(x: int, y: int, follower: int) -> int:
        xs.append(x)
        ys.append(y)
        after.append(follower)
        return len(xs) - 1

    pieces: list[int] = []
    slits: dict[int, list[tuple[int, int]]] = {}
    find = _Left(segments, runs, size_hw)
    for ring in _rings(segments.after):
        if _is_outer(ring, segments):
            pieces.append(2 * ring[0])
        else:  # a hole, whose leftmost segment goes down
            leftmost = min(ring, key=segments.x.__getitem__)
            slits.setdefault(find.segment(leftmost), []).append((segments.begins[leftmost], leftmost))
    for number, holes in slits.items():
        last, x = 2 * number, segments.x[number]
        for y, hole in sorted(holes, reverse=True):  # the segment goes up
            back = corner(x, y, 2 * number + 1)
            after[2 * before[hole] + 1] = corner(segments.x[hole], y, back)
            after[last] = corner(x, y, 2 * hole)
            last = back
    return tuple(_polygon(first, xs, ys, after) for first in pieces)


def _pieces(segments: _Segments, runs: _Runs, size_hw: tuple[int, int]) -> tuple[Piece, ...]:
    """Return the mask's pieces."""
    rings = _rings(segments.after)
    outlines: list[Polygon] = []
    holes: list[list[Polygon]] = []
    # Of each ring, the number of the piece that it belongs to
    piece_of, ring_of = [0] * len(rings), [0] * len(segments.x)
    inner: list[int] = []
    for number, ring in enumerate(rings):
        for segment in ring:
            ring_of[segment] = number
        if not _is_outer(ring, segments):
            inner.append(number)
            continue
        piece_of[number] = len(outlines)
        # Where the outline meets itself by a corner, it goes round a part of the outside, which is a hole, too.
        loops = _loops(ring, segments)
        outline = next(loop for loop in loops if _area(loop) > 0)
        outlines.append(outline)
        holes.append([loop for loop in loops if loop is not outline])
    find = _Left(segments, runs, size_hw)
    leftmost = {number: min(rings[number], key=segments.x.__getitem__) for number in inner}
    # From the left: what is to the left of a hole belongs to the outline, or to a hole whose piece is known.
    for number in sorted(inner, key=lambda number: segments.x[leftmost[number]]):
        piece_of[number] = piece_of[ring_of[find.segment(leftmost[number])]]
        holes[piece_of[number]] += _loops(rings[number], segments)
    return tuple(Piece(outline, tuple(inside)) for outline, inside in zip(outlines, holes, strict=True))


def _is_outer(ring: list[int], segments: _Segments) -> bool:
    return sum(segments.x[one] * (segments.ends[one] - segments.begins[one]) for one in ring) > 0


def _loops(ring: list[int], segments: _Segments) -> list[Polygon]:
    """Cut a ring where it meets itself by a corner, into loops that do not."""
    loops: list[Polygon] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for number in ring:
        for corner in ((segments.x[number], segments.begins[number]), (segments.x[number], segments.ends[number])):
            if (since := place.get(corner)) is not None:
                loops.append(_flat(path[since:]))
                for passed in path[since:]:
                    del place[passed]
                del path[since:]
            place[corner] = len(path)
            path.append(corner)
    return [*loops, _flat(path)]


def _flat(corners: list[tuple[int, int]]) -> Polygon:
    return tuple(value for corner in corners for value in corner)


def _area(polygon: Polygon) -> int:
    """Return the area inside, negative if the polygon runs clockwise.  Its edges are level or upright."""
    xs, ys = polygon[0::2], polygon[1::2]
    return sum(x * (ys[(number + 1) % len(ys)] - ys[number]) for number, x in enumerate(xs))


def _rings(after: list[int]) -> list[list[int]]:
    """Return the closed outlines, each as the segments on it."""
    rings, met = [], [False] * len(after)
    for first in range(len(after)):
        ring, number = [], first
        while not met[number]:
            met[number] = True
            ring.append(number)
            number = after[number]
        if ring:
            rings.append(ring)
    return rings


class _Left:
    """Looks to the left of a hole, for the outline that its own is joined to."""

    def __init__(self, segments: _Segments, runs: _Runs, size_hw: tuple[int, int]) -> None:
        height, width = size_hw
        self._segments = segments
        self._tops, self._bottoms = runs.top.tolist(), runs.bottom.tolist()
        self._first: list[int] = np.searchsorted(runs.column, np.arange(width + 1)).tolist()
        self._rows = height + 1
        higher = map(min, segments.begins, segments.ends)
        self._places = [x * self._rows + y for x, y in zip(segments.x, higher, strict=True)]

    def segment(self, hole: int) -> int:
        """Return the next segment to the left of where a hole's leftmost one begins.  It is the left side of mask."""
        y, column = self._segments.begins[hole], self._segments.x[hole] - 1
        while column >= 0 and self._goes_through(column, y):
            column -= 1
        return bisect_right(self._places, (column + 1) * self._rows + y) - 1

    def _goes_through(self, column: int, y: int) -> bool:
        """Return whether the mask is on both sides of this edge between two rows."""
        above = bisect_left(self._tops, y, self._first[column], self._first[column + 1]) - 1
        return above >= self._first[column] and self._bottoms[above] > y


def _polygon(first: int, xs: list[int], ys: list[int], after: list[int]) -> Polygon:
    flat: list[int] = []
    number = first
    while True:
        if flat[-2:] != [xs[number], ys[number]]:  # a slit that begins or ends at a corner
            flat += (xs[number], ys[number])
        number = after[number]
        if number == first:
            return tuple(flat)
