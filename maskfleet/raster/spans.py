"""Masks on a large raster, as the spans of their pixels in each of its columns.

A span is an interval of places; the place of a pixel is its column times a stride, which is larger than the raster's
height, plus its row.  So spans of different columns never touch, and a mask is two ascending arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskfleet.client.pixels import run_lengths
from maskfleet.raster.layout import Box
from maskfleet.worker.masks.polygons import MAX_RUNS, Piece, pieces_of_runs

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spans:
    """The pixels of a mask: from each of starts up to the stop of the same number."""

    starts: Integers
    stops: Integers
    stride: int

    @classmethod
    def of_rle(cls, counts: str, box: Box, stride: int) -> Spans:
        """Return the spans of a mask that was made of a part of the raster.  counts: COCO's compressed RLE."""
        height = box.bottom - box.top
        ends = np.cumsum(run_lengths(counts))
        starts, stops = ends[0::2][: len(ends) // 2], ends[1::2]
        starts, stops = starts[stops > starts], stops[stops > starts]
        # Runs go on from one column's end to the next one's begin
        first, last = starts // height, (stops - 1) // height
        parts = last - first + 1
        number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        column = np.repeat(first, parts) + number
        top = np.where(number == 0, np.repeat(starts, parts) - column * height, 0)
        bottom = np.where(column == np.repeat(last, parts), np.repeat(stops, parts) - column * height, height)
        place = (column + box.left) * stride + box.top
        return cls(place + top, place + bottom, stride)

    @property
    def area(self) -> int:
        return int((self.stops - self.starts).sum())

    def within(self, box: Box) -> Spans:
        """Return what lies in a part of the raster."""
        column = self.starts // self.stride
        base = column * self.stride
        starts = np.maximum(self.starts, base + box.top)
        stops = np.minimum(self.stops, base + box.bottom)
        kept = (column >= box.left) & (column < box.right) & (starts < stops)
        return Spans(starts[kept], stops[kept], self.stride)

    def __or__(self, other: Spans) -> Spans:
        return self._combined(other, np.logical_or)

    def __and__(self, other: Spans) -> Spans:
        return self._combined(other, np.logical_and)

    def __sub__(self, other: Spans) -> Spans:
        return self._combined(other, np.greater)

    @property
    def box(self) -> Box:
        """Where the pixels lie, of which there must be some."""
        first, last = int(self.starts[0]) // self.stride, int(self.starts[-1]) // self.stride
        rows, ends = self.starts % self.stride, (self.stops - 1) % self.stride + 1
        return Box(first, int(rows.min()), last + 1, int(ends.max()))

    def without_small_pieces(self, least: int) -> Spans:
        """Return the pieces of at least so many pixels; a piece is what is connected by pixels' edges."""
        if not len(self.starts):
            return self
        # Spans touch where one begins, seen from the next column, before the other ends, and ends after it begins.
        first = np.searchsorted(self.stops, self.starts + self.stride, "right")
        beyond = np.searchsorted(self.starts, self.stops + self.stride, "left")
        count = np.maximum(beyond - first, 0)
        begins = np.repeat(np.cumsum(count) - count, count)
        ones = np.repeat(np.arange(len(count)), count).tolist()
        others = (np.arange(len(begins)) - begins + np.repeat(first, count)).tolist()
        piece = list(range(len(count)))
        for one, other in zip(ones, others, strict=True):
            a, b = _root(piece, one), _root(piece, other)
            piece[max(a, b)] = min(a, b)
        of = np.array([_root(piece, one) for one in piece])
        area = np.bincount(of, self.stops - self.starts)
        kept = area[of] >= least
        return Spans(self.starts[kept], self.stops[kept], self.stride)

    def pieces(self) -> tuple[Piece, ...] | None:
        """Return the outlines, in the raster's pixels; None if there are more than MAX_RUNS spans."""
        if len(self.starts) > MAX_RUNS:
            return None
        if not len(self.starts):
            return ()
        column = self.starts // self.stride
        top, bottom = self.starts - column * self.stride, self.stops - column * self.stride
        left, above = int(column[0]), int(top.min())
        size_hw = int(bottom.max()) - above, int(column[-1]) - left + 1
        pieces = pieces_of_runs(column - left, top - above, bottom - above, size_hw)
        return tuple(
            Piece(_moved(piece.outline, left, above), tuple(_moved(hole, left, above) for hole in piece.holes))
            for piece in pieces
        )

    def paint(self, window: Box, value: int, labels: npt.NDArray[np.uint32]) -> None:
        """Set the mask's pixels in the labels of a window, (h, w)."""
        seen = self.within(window)
        height = window.bottom - window.top
        column = seen.starts // self.stride
        base = (column - window.left) * height - column * self.stride - window.top
        steps = np.zeros(labels.size + 1, np.int8)
        np.add.at(steps, seen.starts + base, 1)
        np.add.at(steps, seen.stops + base, -1)
        inside = np.cumsum(steps[:-1], dtype=np.int8).astype(bool).reshape(labels.shape[::-1]).T
        labels[inside] = value

    def _combined(self, other: Spans, rule: np.ufunc) -> Spans:
        places = np.unique(np.concatenate([self.starts, self.stops, other.starts, other.stops]))
        kept = rule(self._holds(places), other._holds(places))
        # A place begins what is kept up to the next one.
        before = np.concatenate([[False], kept[:-1]]) if len(kept) else kept
        return Spans(places[kept & ~before], places[~kept & before], self.stride)

    def _holds(self, places: Integers) -> npt.NDArray[np.bool_]:
        at = np.searchsorted(self.starts, places, "right") - 1
        if not len(self.starts):
            return np.zeros(len(places), np.bool_)
        return (at >= 0) & (places < self.stops[np.maximum(at, 0)])


def _root(piece: list[int], one: int) -> int:
    while piece[one] != one:
        piece[one] = piece[piece[one]]
        one = piece[one]
    return one


def _moved(ring: tuple[int, ...], right: int, down: int) -> tuple[int, ...]:
    return tuple(value + (down if at % 2 else right) for at, value in enumerate(ring))
