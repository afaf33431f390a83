"""Masks of tiles that overlap become objects of the raster, each once.

A mask is *cut off* if it comes within EDGE pixels of where its tile was cut.  Then:

1. A mask that is cut off in one tile, and lies in another tile away from where that one was cut, is dropped: the other
   tile sees all that it shows, and more.
2. Masks of two tiles are compared: as far as both tiles lie, but all of a mask counts if the other one is whole.  Pairs
   whose intersection is at least half of their union are the same object, the best pair first; each mask is paired
   once, but a whole one with any number of those that are cut off.  One that is dropped is paired as well, so that no
   other is taken for it, but that changes nothing else.
   a. Two that are whole: the one with the higher score stays.
   b. A whole one and one that is cut off: the whole one stays.
   c. Two that are cut off are parts of one object, as are further parts of these: their union.
3. All others stay as they are; those that are cut off are marked.

So an object that is no larger than the overlap is taken whole from one tile, and a larger one joined.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache

from maskfleet.raster.layout import Box, Layout
from maskfleet.raster.spans import Spans

#: Two masks of the same object, by two tiles, differ by some pixels at their edge: a third of a small one's.
SAME = 0.5
#: Tiles whose masks are in memory at once: those around one.
_TILES_AT_ONCE = 10


@dataclass(frozen=True)
class TileMask:
    """A mask as a tile shows it.  spans: its pixels in the raster, of which there are some."""

    score: float
    stability: float
    spans: Spans

    @cached_property
    def box(self) -> Box:
        """Where it lies in the raster."""
        return self.spans.box


@dataclass(frozen=True, slots=True)
class Object:
    """An object of the raster.

    parts: its masks, each by its tile and its number among that one's, from 0.  is_cut_off: whether a part of it may be
    missing.
    """

    parts: tuple[tuple[int, int], ...]
    is_cut_off: bool


#: Returns a tile's masks.
ReadTile = Callable[[int], Sequence[TileMask]]


class Seams:
    """Finds out which masks of all tiles are the same object.

    done: the tiles that have masks; of others, which failed, nothing is known.
    Of each mask only some 40 bytes are kept; the masks themselves are read again when their tile is looked at, and
    those of a few tiles are in memory at a time.
    """

    def __init__(self, layout: Layout, done: Set[int], read: ReadTile) -> None:
        self._layout = layout
        self._done = done
        self.read = lru_cache(_TILES_AT_ONCE)(read)
        #: Of each tile, the number of its first mask.
        self._first = array("q")
        #: Of each mask: its tile, its score, whether it is cut off, and whether it is dropped.
        self._tile, self._score, self._cut, self._dropped = array("q"), array("d"), bytearray(), bytearray()
        #: Of each mask one that is the same, both whole or both cut off: a forest, each tree an object.
        self._same = array("q")
        for tile in range(len(layout)):
            self._first.append(len(self._tile))
            if tile in done:
                self._note(tile)
        for tile in sorted(done):
            for earlier in layout.touching(layout.box(tile)):
                if earlier < tile and earlier in done:
                    self._compare(earlier, tile)
        self._drop_doubles()

    def objects(self) -> Iterator[Object]:
        """Yield the objects, in the order of their first masks."""
        parts: dict[int, list[int]] = {}
        for mask in self._kept():
            if self._cut[mask]:
                parts.setdefault(self._root(mask), []).append(mask)
        for mask in self._kept():
            members = parts[self._root(mask)] if self._cut[mask] else [mask]
            if members[0] == mask:
                places = tuple((self._tile[one], one - self._first[self._tile[one]]) for one in members)
                yield Object(places, is_cut_off=bool(self._cut[mask]) and len(members) == 1)

    def _kept(self) -> Iterator[int]:
        return (mask for mask in range(len(self._tile)) if not self._dropped[mask])

    def _note(self, tile: int) -> None:
        """Note a tile's masks, and drop those that another tile shows more of (1)."""
        inside = self._layout.inside(tile)
        for mask in self.read(tile):
            is_cut = mask.box not in inside
            elsewhere = (
                other
                for other in self._layout.touching(mask.box)
                if other != tile and other in self._done and mask.box in self._layout.inside(other)
            )
            self._same.append(len(self._same))
            self._tile.append(tile)
            self._score.append(mask.score)
            self._cut.append(is_cut)
            self._dropped.append(is_cut and next(elsewhere, None) is not None)

    def _compare(self, earlier: int, later: int) -> None:
        """Find the objects that two tiles have in common (2)."""
        zone = self._layout.box(earlier) & self._layout.box(later)
        ours, theirs = self._in(zone, earlier), self._in(zone, later)
        pairs: list[tuple[float, int, int]] = []
        for one, (mask, seen) in ours.items():
            for other, (its_mask, its_seen) in theirs.items():
                if not mask.box & its_mask.box:
                    continue
                area = seen.area if self._cut[other] else mask.spans.area
                its_area = its_seen.area if self._cut[one] else its_mask.spans.area
                if min(area, its_area) < SAME * max(area, its_area):
                    continue
                shared = (seen & its_seen).area
                if shared >= SAME * (area + its_area - shared):
                    pairs.append((-shared / (area + its_area - shared), one, other))
        taken: set[int] = set()
        for _, one, other in sorted(pairs):
            if one not in taken and other not in taken:
                taken |= {one, other} if self._cut[one] == self._cut[other] else {one if self._cut[one] else other}
                self._join(one, other)

    def _in(self, zone: Box, tile: int) -> dict[int, tuple[TileMask, Spans]]:
        """Return a tile's masks with what of them is in a zone, if anything is."""
        found = {}
        for mask, shown in enumerate(self.read(tile), self._first[tile]):
            if shown.box & zone:
                seen = shown.spans.within(zone)
                if len(seen.starts):
                    found[mask] = shown, seen
        return found

    def _join(self, one: int, other: int) -> None:
        """Note that two masks are the same object, unless another tile shows more of one of them."""
        if self._dropped[one] or self._dropped[other]:
            return
        if self._cut[one] == self._cut[other]:
            first, second = sorted((self._root(one), self._root(other)))
            self._same[second] = first
        else:
            self._dropped[one if self._cut[one] else other] = True

    def _drop_doubles(self) -> None:
        """Of masks of the same object that are whole, keep the one with the highest score (2a), else the first."""
        best: dict[int, int] = {}
        for mask in self._kept():
            if not self._cut[mask] and (root := self._root(mask)) != mask:
                best.setdefault(root, root)
                if self._score[mask] > self._score[best[root]]:
                    self._dropped[best[root]], best[root] = True, mask
                else:
                    self._dropped[mask] = True

    def _root(self, mask: int) -> int:
        while self._same[mask] != mask:
            self._same[mask] = self._same[self._same[mask]]
            mask = self._same[mask]
        return mask
