"""Masks of tiles that overlap become objects of the raster: made masks, exactly."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import numpy.typing as npt
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from maskfleet.raster.layout import EDGE, Box, Layout
from maskfleet.raster.seams import Object, Seams, TileMask
from maskfleet.raster.spans import Spans

Bools = npt.NDArray[np.bool_]
#: Four tiles across and three down, which share 28 pixels or more.
WIDTH, HEIGHT, OVERLAP = 150, 110, 20
LAYOUT = Layout((WIDTH, HEIGHT), tile=60, overlap=OVERLAP)


def rectangle(left: int, top: int, right: int, bottom: int) -> Bools:
    found = np.zeros((HEIGHT, WIDTH), np.bool_)
    found[top:bottom, left:right] = True
    return found


def spans_of(pixels: Bools, box: Box, stride: int = HEIGHT + 1) -> Spans:
    counts = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    return Spans.of_rle(counts, box, stride)


def seen_by(tile: int, pixels: Bools, score: float = 0.9) -> list[TileMask]:
    """Return the mask that a tile shows of an object, if it shows any of it."""
    box = LAYOUT.box(tile)
    shown = pixels[box.top : box.bottom, box.left : box.right]
    if not shown.any():
        return []
    return [TileMask(score, 1.0, spans_of(shown, box))]


def pixels_of(thing: Object, seams: Seams) -> Bools:
    found = np.zeros((HEIGHT, WIDTH), np.uint32)
    for tile, at in thing.parts:
        seams.read(tile)[at].spans.paint(Box(0, 0, WIDTH, HEIGHT), 1, found)
    return found.astype(bool)


def joined(masks: Sequence[Sequence[TileMask]], done: Set[int] | None = None) -> tuple[list[Object], list[Bools]]:
    seams = Seams(LAYOUT, set(range(len(LAYOUT))) if done is None else done, lambda tile: masks[tile])
    objects = list(seams.objects())
    return objects, [pixels_of(one, seams) for one in objects]


def all_see(things: Sequence[Bools]) -> list[list[TileMask]]:
    return [[mask for thing in things for mask in seen_by(tile, thing)] for tile in range(len(LAYOUT))]


def boxes(most: int) -> st.SearchStrategy[Box]:
    return st.builds(
        lambda left, top, width, height: Box(left, top, min(left + width, WIDTH), min(top + height, HEIGHT)),
        *(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, most), st.integers(1, most)),
    )


@given(box=boxes(OVERLAP))
def test_what_is_no_larger_than_the_overlap_is_whole_in_a_tile(box: Box) -> None:
    assert any(box in LAYOUT.inside(tile) for tile in range(len(LAYOUT)))


@given(
    size_wh=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    tile=st.integers(128, 1500),
    overlap=st.integers(0, 56),
)
def test_tiles_cover_the_raster_evenly(size_wh: tuple[int, int], tile: int, overlap: int) -> None:
    layout = Layout(size_wh, tile, overlap)
    last = layout.box(len(layout) - 1)

    assert (layout.box(0).left, layout.box(0).top, last.right, last.bottom) == (0, 0, *size_wh)
    for number in range(1, layout.columns):
        before, box = layout.box(number - 1), layout.box(number)
        assert before.right - box.left >= overlap + 2 * EDGE
        assert box.right - box.left == tile


@settings(max_examples=60, deadline=None)
# In the last tile the first one's end is dropped, for another tile shows more of it.
@example(found=[(Box(0, 0, 1, 57), False), (Box(0, 29, 1, 82), False)])
@given(found=st.lists(st.tuples(boxes(120), st.booleans()), min_size=1, max_size=6))
def test_each_object_comes_out_once_with_its_pixels_whatever_its_size(found: list[tuple[Box, bool]]) -> None:
    """Tiles show what is theirs of each object, exactly; so must the objects be."""
    things: list[Bools] = []
    for box, is_ring in found:
        thing = rectangle(box.left, box.top, box.right, box.bottom)
        if is_ring:
            thing &= ~rectangle(box.left + 3, box.top + 3, box.right - 3, box.bottom - 3)
        if not any((thing == other).all() for other in things):
            things.append(thing)

    objects, pixels = joined(all_see(things))

    assert sorted(one.tobytes() for one in pixels) == sorted(one.tobytes() for one in things)
    for one, its in zip(objects, pixels, strict=True):
        rows, columns = np.nonzero(its)
        if max(np.ptp(rows), np.ptp(columns)) < OVERLAP:
            assert len(one.parts) == 1
        assert not one.is_cut_off


# Tiles 0 and 1 lie side by side, from 0 to 60 and from 30 to 90.
A, B = 0, 1


def side_by_side(ours: Sequence[TileMask], theirs: Sequence[TileMask]) -> tuple[list[Object], list[Bools]]:
    assert (LAYOUT.box(A).left, LAYOUT.box(B).left) == (0, 30)
    return joined([ours, theirs, *([] for _ in range(len(LAYOUT) - 2))])


def test_of_two_masks_of_an_object_that_two_tiles_show_whole_the_better_one_stays() -> None:
    ours, theirs = rectangle(36, 10, 50, 24), rectangle(37, 10, 52, 24)

    _, better = side_by_side(seen_by(A, ours, 0.8), seen_by(B, theirs, 0.9))
    _, first = side_by_side(seen_by(A, ours, 0.9), seen_by(B, theirs, 0.9))

    assert [(one == theirs).all() for one in better] == [True]
    assert [(one == ours).all() for one in first] == [True]


def test_two_objects_of_which_half_is_shared_are_not_one() -> None:
    ours, theirs = rectangle(36, 10, 50, 24), rectangle(43, 10, 55, 24)

    objects, _ = side_by_side(seen_by(A, ours), seen_by(B, theirs))

    assert len(objects) == 2


def test_a_part_stays_beside_its_whole() -> None:
    """The whole is half seen by each tile, its part whole by both: each is matched with its like."""
    whole, part = rectangle(20, 5, 75, 24), rectangle(37, 7, 53, 22)

    objects, pixels = joined(all_see([whole, part]))

    assert sorted(len(one.parts) for one in objects) == [1, 2]
    assert sorted(one.sum() for one in pixels) == [part.sum(), whole.sum()]


def test_a_mask_that_is_cut_off_gives_way_to_the_tile_that_shows_more_even_if_that_found_nothing() -> None:
    objects, _ = side_by_side(seen_by(A, rectangle(52, 10, 70, 24)), [])

    assert objects == []


def test_a_mask_that_is_cut_off_gives_way_to_a_whole_one_that_it_resembles() -> None:
    """What the first tile shows reaches too far, so the other tile does not show all of it."""
    objects, pixels = side_by_side(seen_by(A, rectangle(28, 10, 60, 24)), seen_by(B, rectangle(36, 10, 66, 24)))

    assert [len(one.parts) for one in objects] == [1]
    assert (pixels[0] == rectangle(36, 10, 66, 24)).all()


def test_two_halves_are_joined_though_they_differ_where_they_meet() -> None:
    objects, pixels = side_by_side(seen_by(A, rectangle(10, 10, 58, 30)), seen_by(B, rectangle(30, 11, 85, 32)))

    assert [(one.parts, one.is_cut_off) for one in objects] == [(((A, 0), (B, 0)), False)]
    assert (pixels[0] == (rectangle(10, 10, 58, 30) | rectangle(30, 11, 85, 32))).all()


def test_a_half_without_its_other_one_stays_and_is_marked() -> None:
    objects, _ = side_by_side(seen_by(A, rectangle(10, 10, 60, 30)), seen_by(B, rectangle(40, 32, 50, 40)))

    assert [one.is_cut_off for one in objects] == [True, False]


def test_of_a_tile_that_failed_nothing_is_believed() -> None:
    """What the first tile shows of an object is all that there is: the second one, which shows more, failed."""
    masks = all_see([rectangle(40, 10, 70, 24)])

    objects, _ = joined(masks, done={A})

    assert [(one.parts, one.is_cut_off) for one in objects] == [(((A, 0),), True)]


@settings(max_examples=100, deadline=None)
@given(
    one=arrays.arrays(bool, (7, 9), elements=st.booleans()),
    other=arrays.arrays(bool, (7, 9), elements=st.booleans()),
    window=st.tuples(*(st.integers(0, 9) for _ in range(4))),
)
def test_spans_are_the_pixels_that_they_stand_for(one: Bools, other: Bools, window: tuple[int, int, int, int]) -> None:
    whole = Box(20, 30, 29, 37)
    ours, theirs = spans_of(one, whole, 50), spans_of(other, whole, 50)
    part = Box(20 + window[0], 30 + window[1], 20 + window[0] + window[2], 30 + window[1] + window[3]) & whole

    def drawn(spans: Spans) -> Bools:
        labels = np.zeros((7, 9), np.uint32)
        spans.paint(whole, 1, labels)
        return labels.astype(bool)

    inside = np.zeros((7, 9), bool)
    inside[part.top - 30 : part.bottom - 30, part.left - 20 : part.right - 20] = True
    assert (drawn(ours) == one).all()
    assert (drawn(ours | theirs) == (one | other)).all()
    assert (drawn(ours & theirs) == (one & other)).all()
    assert (drawn(ours - theirs) == (one & ~other)).all()
    assert (drawn(ours.within(part)) == (one & inside)).all()
    assert ours.area == one.sum()
    rows, columns = np.nonzero(one)
    if len(rows):
        box = 20 + columns.min(), 30 + rows.min(), 21 + columns.max(), 31 + rows.max()
        assert ours.box == Box(*map(int, box))
    pieces = ours.pieces()
    assert pieces is not None
    areas = [_area(piece.outline) + sum(map(_area, piece.holes)) for piece in pieces]
    assert ours.without_small_pieces(3).area == sum(area for area in areas if area >= 3)
    assert sum(areas) == one.sum()


def _area(ring: tuple[int, ...]) -> float:
    x, y = np.array(ring[0::2]), np.array(ring[1::2])
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_a_mask_of_too_many_spans_has_no_outlines() -> None:
    count = 200_001
    ragged = Spans(np.arange(count) * 3, np.arange(count) * 3 + 1, 4 * count)

    assert ragged.pieces() is None
