"""A mask's outline as polygons with holes, exactly along the edges of its pixels: what GeoJSON holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from maskfleet.client.pixels import Pixels

Corner = tuple[int, int]
#: A closed ring: x, y of pixels' corners, the first again at its end.
Ring = list[Corner]
#: A straight piece of the outline: where it begins, and whether x or y grows along it.
Step = tuple[Corner, bool]


def polygons_with_holes(mask: Pixels) -> list[list[Ring]]:
    """Return a mask's polygons, each an outer ring followed by its holes.  mask: (H, W).

    Pieces that touch only by a corner are polygons of their own, and no ring meets a point twice.  Outer rings run
    clockwise on a picture, which is counterclockwise in its numbers; holes run the other way.
    Source: RFC 7946, section 3.1.6.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    rings = list(_rings(mask[top : rows[-1] + 1, left : columns[-1] + 1]))
    outer = sorted((ring for ring in rings if _doubled_area(ring) > 0), key=_doubled_area)
    polygons = [[ring] for ring in outer]
    for hole in (ring for ring in rings if _doubled_area(ring) < 0):
        beside = _pixel_on_the_right(hole)
        # The smallest ring around that pixel is the one of its own piece: larger ones are around the whole piece.
        next(polygon for polygon in polygons if _is_inside(beside, polygon[0])).append(hole)
    return [[[(x + left, y + top) for x, y in ring] for ring in polygon] for polygon in polygons]


def _rings(mask: Pixels) -> Iterator[Ring]:
    """Follow the outline with the mask on the right: to the right above it, down on its right side, and so on."""
    padded = np.pad(mask.astype(np.int8), 1)
    sideways = {((x, y), on): (to, y) for y, x, on, to in _straight(np.diff(padded, axis=0)[:, 1:-1])}
    upright = {((x, y), on): (x, to) for x, y, on, to in _straight(-np.diff(padded, axis=1)[1:-1].T)}
    left = dict.fromkeys(sideways)
    while left:
        first = step = next(iter(left))
        path = [first[0]]
        while True:
            del left[step]
            # Where two pixels touch by a corner there are two ways on; the turn to the right stays at the same pixel.
            path.append(sideways[step])
            step = _one_of(upright, path[-1], step[1])
            path.append(upright[step])
            step = _one_of(sideways, path[-1], not step[1])
            if step == first:
                break
        yield from _simple(path)


def _straight(edges: npt.NDArray[np.int8]) -> Iterable[tuple[int, int, bool, int]]:
    """Return each straight piece's line, where on it the piece begins, whether numbers grow along it, and its end.

    edges: one row for each line; 1 and -1 where the outline runs along it, forwards and backwards.
    """
    padded = np.pad(edges, ((0, 0), (1, 1)))
    before, after = padded[:, :-1], padded[:, 1:]
    lines, begins = np.nonzero((before != after) & (after != 0))
    _, ends = np.nonzero((before != after) & (before != 0))
    onward = after[lines, begins] > 0
    froms, tos = np.where(onward, begins, ends), np.where(onward, ends, begins)
    return zip(lines.tolist(), froms.tolist(), onward.tolist(), tos.tolist(), strict=True)


def _one_of(steps: dict[Step, Corner], at: Corner, wanted: bool) -> Step:
    return (at, wanted) if (at, wanted) in steps else (at, not wanted)


def _simple(path: Ring) -> Iterator[Ring]:
    """Cut a closed path into rings that meet no corner twice."""
    stack: Ring = []
    index: dict[Corner, int] = {}
    for corner in path:
        if corner not in index:
            index[corner] = len(stack)
            stack.append(corner)
            continue
        first = index[corner]
        yield [*stack[first:], corner]
        for gone in stack[first + 1 :]:
            del index[gone]
        del stack[first + 1 :]


def _doubled_area(ring: Ring) -> int:
    """Return twice the area that a ring encloses; negative if the mask is outside of it."""
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in pairwise(ring))


def _pixel_on_the_right(ring: Ring) -> tuple[float, float]:
    """Return the middle of a pixel of the mask that lies along the ring."""
    (x, y), (next_x, next_y) = ring[:2]
    ahead_x, ahead_y = np.sign(next_x - x), np.sign(next_y - y)
    return x + (ahead_x - ahead_y) / 2, y + (ahead_y + ahead_x) / 2


def _is_inside(point: tuple[float, float], ring: Ring) -> bool:
    """Whether a pixel's middle is inside a ring: an odd number of vertical edges lies to its left."""
    x, y = point
    edges = pairwise(ring)
    return sum(1 for (at, y0), (_, y1) in edges if at < x and min(y0, y1) < y < max(y0, y1)) % 2 == 1
