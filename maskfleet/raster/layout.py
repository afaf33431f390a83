"""How a raster is cut into tiles that overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

#: A mask that comes as near as this to where its tile was cut may go on behind it: a pixel of the masks that Segment
#: Anything makes, of 256 on 1,024.
EDGE = 4


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the raster, up to right and bottom, which are not in it."""

    left: int
    top: int
    right: int
    bottom: int

    def __and__(self, other: Box) -> Box:
        return Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )

    def __bool__(self) -> bool:
        return self.left < self.right and self.top < self.bottom

    @property
    def area(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top) if self else 0

    def iou(self, other: Box) -> float:
        shared = (self & other).area
        return shared / (self.area + other.area - shared)

    def __contains__(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """The tiles of a raster, numbered from 0 by rows.

    Neighbours share at least ``overlap`` pixels and twice EDGE, so that what is no larger than ``overlap`` is whole,
    and away from the cuts, in at least one of them.
    """

    size_wh: tuple[int, int]
    tile: int
    overlap: int

    def __len__(self) -> int:
        return len(self._lefts) * len(self._tops)

    @property
    def columns(self) -> int:
        return len(self._lefts)

    def box(self, number: int) -> Box:
        """Return where a tile lies."""
        row, column = divmod(number, self.columns)
        left, top = self._lefts[column], self._tops[row]
        width, height = self.size_wh
        return Box(left, top, min(left + self.tile, width), min(top + self.tile, height))

    def inside(self, number: int) -> Box:
        """Return the part of a tile that is away from where it was cut; the raster's own edges are no cuts."""
        box, (width, height) = self.box(number), self.size_wh
        return Box(
            box.left + EDGE if box.left else 0,
            box.top + EDGE if box.top else 0,
            box.right - EDGE if box.right < width else width,
            box.bottom - EDGE if box.bottom < height else height,
        )

    def touching(self, box: Box) -> Iterator[int]:
        """Yield the tiles that a part of the raster lies in."""
        columns = [at for at, left in enumerate(self._lefts) if left < box.right and left + self.tile > box.left]
        for row, top in enumerate(self._tops):
            if top < box.bottom and top + self.tile > box.top:
                yield from (row * self.columns + column for column in columns)

    @property
    def _lefts(self) -> list[int]:
        return self._starts(self.size_wh[0])

    @property
    def _tops(self) -> list[int]:
        return self._starts(self.size_wh[1])

    def _starts(self, length: int) -> list[int]:
        """Return where tiles begin along one side: evenly, so that no tile is smaller than the others."""
        if length <= self.tile:
            return [0]
        shared = self.overlap + 2 * EDGE
        count = math.ceil((length - shared) / (self.tile - shared))
        return [round(number * (length - self.tile) / (count - 1)) for number in range(count)]
