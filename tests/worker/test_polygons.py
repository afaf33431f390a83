"""Polygons hold exactly the pixels of their mask, by whichever rule they are filled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from maskfleet.worker.masks.polygons import Piece, Polygon, mask_pieces, mask_polygons

Pixels = npt.NDArray[np.bool_]
PLENTY = 1_000_000

RING = ["######", "#....#", "#.##.#", "#.##.#", "#....#", "######"]
SHAPES = {
    "nothing": ["...", "..."],
    "everything": ["###", "###"],
    "one pixel": ["...", ".#.", "..."],
    "two pieces that touch by a corner": ["##..", "##..", "..##", "..##"],
    "two holes that touch by a corner": ["#####", "#.###", "##.##", "#####"],
    "a hole that touches the outside by a corner": ["####", "#.##", "##.#", "###."],
    "a piece in a hole of a piece": RING,
    "holes beside each other": ["#########", "#.#.#.#.#", "#########"],
    "holes on either side of an edge": ["#######", "##.#..#", "##.#..#", "###...#", "#.....#", "#######"],
    "a hole in the last column but one": ["####", "##.#", "####"],
    "a comb": ["#.#.#", "#.#.#", "#####"],
    "whole columns": ["##.##"] * 4,
}


def pixels_of(rows: list[str]) -> Pixels:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def polygons_of(mask: Pixels, max_corners: int = PLENTY) -> tuple[Polygon, ...] | None:
    height, width = mask.shape
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    return mask_polygons(counts, (height, width), max_corners)


def drawn_by_coco(polygons: tuple[Polygon, ...], shape: tuple[int, ...]) -> Pixels:
    """Draw the polygons as COCO's tools do: each by itself, then their union."""
    if not polygons:
        return np.zeros(shape, bool)
    pieces = coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], *shape)
    return coco_mask.decode(coco_mask.merge(pieces)).astype(bool)


def windings(polygons: tuple[Polygon, ...], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Count how often the polygons go round each pixel, by the edges to its left."""
    edges = np.zeros((shape[0], shape[1] + 1), int)
    for polygon in polygons:
        corners = list(zip(polygon[0::2], polygon[1::2], strict=True))
        for (x, y), (next_x, next_y) in zip(corners, [*corners[1:], corners[0]], strict=True):
            assert (x == next_x) != (y == next_y), "an edge is slanted, or has no length"
            edges[min(y, next_y) : max(y, next_y), x] += np.sign(y - next_y)
    return edges.cumsum(axis=1)[:, :-1]


def pieces_of(mask: Pixels) -> tuple[Piece, ...] | None:
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    return mask_pieces(counts, (mask.shape[0], mask.shape[1]))


def signed_area(ring: Polygon) -> float:
    """The shoelace formula: positive if the ring runs counter-clockwise, with y upwards."""
    xs, ys = np.array(ring[0::2]), np.array(ring[1::2])
    return float((xs * np.roll(ys, -1) - ys * np.roll(xs, -1)).sum() / 2)


def check_pieces(mask: Pixels) -> None:
    pieces = pieces_of(mask)

    assert pieces is not None
    for piece in pieces:
        rings = (piece.outline, *piece.holes)
        for ring in rings:
            corners = list(zip(ring[0::2], ring[1::2], strict=True))
            assert len(set(corners)) == len(corners) >= 4, "a ring meets itself"
        assert signed_area(piece.outline) > 0 > max(map(signed_area, piece.holes), default=-1)
        # Each piece by itself has its holes inside: windings are 0 or 1.
        own = windings(rings, mask.shape)
        assert set(np.unique(own)) <= {0, 1}
        assert own.sum() == sum(map(signed_area, rings)) > 0
    rings = tuple(ring for piece in pieces for ring in (piece.outline, *piece.holes))
    assert np.array_equal(windings(rings, mask.shape), mask.astype(int))
    assert len(pieces) == len(polygons_of(mask) or ())


def check(mask: Pixels) -> tuple[Polygon, ...]:
    polygons = polygons_of(mask)

    assert polygons is not None
    assert np.array_equal(drawn_by_coco(polygons, mask.shape), mask)
    # Once round each of the mask's pixels, not at all round others: the even-odd and the winding rule agree.
    assert np.array_equal(windings(polygons, mask.shape), mask.astype(int))
    return polygons


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_what_its_polygons_hold(name: str) -> None:
    check(pixels_of(SHAPES[name]))
    check_pieces(pixels_of(SHAPES[name]))


@settings(max_examples=300, deadline=None)
@given(
    mask=arrays.arrays(
        bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.booleans()
    )
)
def test_any_mask_is_what_its_polygons_hold(mask: Pixels) -> None:
    check(mask)
    check_pieces(mask)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.6, 0.95])
def test_noise_is_what_its_polygons_hold(share: float) -> None:
    noise = np.random.default_rng(1).random((60, 70)) < share
    check(noise)
    check_pieces(noise)


def test_a_piece_is_one_polygon_with_its_corners_only() -> None:
    assert polygons_of(pixels_of(["....", ".##.", ".##.", "...."])) == ((1, 3, 1, 1, 3, 1, 3, 3),)
    assert len(check(pixels_of(RING))) == 2
    assert len(check(pixels_of(SHAPES["two pieces that touch by a corner"]))) == 2
    assert len(check(pixels_of(SHAPES["two holes that touch by a corner"]))) == 1


def test_a_disc_has_two_corners_for_each_step() -> None:
    rows, columns = np.mgrid[:1000, :1000]

    (polygon,) = check((rows - 500) ** 2 + (columns - 500) ** 2 < 400**2)

    assert len(polygon) / 2 < 2 * 2 * 800


def test_a_mask_with_more_corners_than_wanted_has_no_polygons() -> None:
    ring = pixels_of(RING)

    assert polygons_of(ring, 12) is not None
    assert polygons_of(ring, 11) is None
    noise = np.random.default_rng(1).random((1500, 1500)) < 0.5
    assert polygons_of(noise) is None
    assert pieces_of(noise) is None


def test_holes_are_with_the_piece_that_is_around_them() -> None:
    assert pieces_of(pixels_of(SHAPES["nothing"])) == ()
    assert pieces_of(pixels_of(["....", ".##.", ".##.", "...."])) == (Piece((1, 3, 1, 1, 3, 1, 3, 3), ()),)

    around, inside = pieces_of(pixels_of(RING)) or ()
    (touching,) = pieces_of(pixels_of(SHAPES["a hole that touches the outside by a corner"])) or ()

    assert (len(around.holes), len(inside.holes)) == (1, 0)
    assert sorted(map(signed_area, touching.holes)) == [-1, -1]
