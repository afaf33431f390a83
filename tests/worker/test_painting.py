"""Masks painted from their runs are, pixel for pixel, those that their RLE decodes to."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.masks.rle import column_spans
from maskfleet.worker.output.blur import Box, blur
from maskfleet.worker.output.formats import label_map_png, mask_png
from maskfleet.worker.output.painting import Blocks, mask_coverage
from maskfleet.worker.output.png import BITS, RGB, filtered_paeth, write_png
from maskfleet.worker.output.scaling import scaled_down
from maskfleet.worker.segmentation import Segmentation, SegmentMetrics
from tests import references
from tests.worker.png_reader import read_png

Bools = npt.NDArray[np.bool_]


def mask_of(pixels: Bools) -> Mask:
    counts = coco_mask.encode(np.asfortranarray(pixels).view(np.uint8))["counts"].decode("ascii")
    height, width = pixels.shape
    x0, y0, x1, y1 = references.bounding_box(pixels) or (0, 0, 0, 0)
    box = (x0, y0, x1 - x0, y1 - y0)
    return Mask(counts, pixels.shape, int(pixels.sum()), box, 0.9, 0.9, (), (0, 0, width, height), None, None)


def segmentation_of(*pixels: Bools) -> Segmentation:
    height, width = pixels[0].shape
    metrics = SegmentMetrics(0, 0, 0, 0, 0, 0, 0, 0, False, EmbeddingOrigin.COMPUTED)
    return Segmentation((width, height), tuple(mask_of(one) for one in pixels), metrics)


@st.composite
def bitmaps(draw: st.DrawFn, size_hw: tuple[int, int] | None = None) -> Bools:
    """Draw noise, rectangles and their inverse, which reach the edges or are empty."""
    height, width = size_hw or (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    pixels: Bools = random.random((height, width)) < draw(st.sampled_from([0, 0.02, 0.5, 1]))
    for _ in range(draw(st.integers(0, 3))):
        (top, bottom), (left, right) = (sorted(random.integers(0, side + 1, 2)) for side in (height, width))
        pixels[top:bottom, left:right] = draw(st.booleans())
    return pixels


def edge_cases() -> list[Any]:
    """The corners of what a mask can be, on images of all widths modulo 8 and of a single row or column."""
    cases = []
    for height, width in [(1, 1), (1, 9), (9, 1), (1, 3000), (3000, 1), *((5, 16 + more) for more in range(9))]:
        empty = np.zeros((height, width), bool)
        last, first, column = empty.copy(), empty.copy(), empty.copy()
        last[-1, -1] = first[0, 0] = True
        column[:, width // 2] = True
        for name, pixels in [("none", empty), ("all", ~empty), ("last", last), ("first", first), ("column", column)]:
            cases.append(pytest.param(pixels, id=f"{name} of {width}×{height}"))
    return cases


@settings(max_examples=300, deadline=None)
@given(pixels=bitmaps())
def test_spans_are_where_the_pixels_are(pixels: Bools) -> None:
    mask = mask_of(pixels)
    again = np.zeros_like(pixels)

    spans = column_spans(mask.counts, mask.size_hw)

    for column, start, stop in spans.tolist():
        assert 0 <= start < stop <= pixels.shape[0]
        again[start:stop, column] = True
    assert np.array_equal(again, pixels)
    assert (spans[:, 2] - spans[:, 1]).sum() == pixels.sum()  # none twice


@pytest.mark.parametrize("counts", ["", "0", "01", "P", "PPPPPPPPPPPP", "1o", "00000", "nnn", "0~~~~~~~~~~~~~~~~~~~"])
def test_spans_of_broken_counts_stay_inside_the_image(counts: str) -> None:
    spans = column_spans(counts, (3, 4))

    assert np.all((spans >= 0) & (spans <= [3, 3, 3]))


@settings(max_examples=300, deadline=None)
@given(pixels=bitmaps())
def test_a_mask_as_png_has_the_pixels_that_its_rle_has(pixels: Bools) -> None:
    mask = mask_of(pixels)

    data = mask_png(mask)

    read = read_png(data)
    assert (read.bit_depth, read.colour_type) == (1, 0)
    assert np.array_equal(read.pixels, decode_mask(mask))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


@pytest.mark.parametrize("pixels", edge_cases())
def test_masks_and_label_maps_of_odd_sizes_are_exact(pixels: Bools) -> None:
    made, labelled = mask_png(mask_of(pixels)), label_map_png(segmentation_of(pixels, ~pixels))

    assert np.array_equal(read_png(made).pixels, pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(made))), pixels)
    read = read_png(labelled)
    assert (read.bit_depth, read.colour_type) == (16, 0)
    assert np.array_equal(read.pixels, np.where(pixels, 1, 2))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(labelled))), np.where(pixels, 1, 2))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), height=st.integers(1, 20), width=st.integers(1, 30), count=st.integers(1, 6))
def test_a_label_map_shows_the_smallest_mask_of_each_pixel(
    data: st.DataObject, height: int, width: int, count: int
) -> None:
    masks = [data.draw(bitmaps((height, width))) for _ in range(count)]

    read = read_png(label_map_png(segmentation_of(*masks)))

    assert np.array_equal(read.pixels, references.labels(masks))


def test_labels_above_255_have_both_bytes() -> None:
    masks = [np.arange(400).reshape(20, 20) == index for index in range(400)]

    read = read_png(label_map_png(segmentation_of(*masks)))

    assert np.array_equal(read.pixels, np.arange(1, 401).reshape(20, 20))


@pytest.mark.parametrize("at", [(0, 0), (2999, 4999), (1500, 2500), (100, 4998), (2900, 7)])
def test_rows_without_a_mask_cost_hardly_a_byte(at: tuple[int, int]) -> None:
    pixels = np.zeros((3000, 5000), bool)
    pixels[at] = True

    data = mask_png(mask_of(pixels))
    labels = label_map_png(segmentation_of(pixels))

    picture, labelled = np.asarray(Image.open(io.BytesIO(data))), np.asarray(Image.open(io.BytesIO(labels)))
    assert np.array_equal(picture, pixels)
    assert np.array_equal(labelled, pixels)
    assert len(data) < 3000
    assert len(labels) < 40_000


def test_a_png_may_be_given_in_pieces_among_black_rows() -> None:
    rows = np.zeros((700, 1 + 1000), np.uint8)
    rows[300:340, 1:] = np.random.default_rng(1).integers(0, 256, (40, 1000))

    whole = write_png((8000, 700), BITS, [rows])
    pieces = write_png((8000, 700), BITS, [rows[300:310], rows[310:340]], first_row=300)

    assert np.array_equal(read_png(pieces).pixels, read_png(whole).pixels)
    assert read_png(pieces).pixels[300:340].any()


@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 30), height=st.integers(1, 70), seed=st.integers(0, 10**6), smooth=st.booleans())
def test_rgb_is_read_as_it_was_written(width: int, height: int, seed: int, smooth: bool) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if smooth:
        pixels = np.cumsum(pixels // 100, axis=1).astype(np.uint8)

    data = write_png((width, height), RGB, filtered_paeth(pixels))

    assert np.array_equal(read_png(data).pixels, pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


@settings(max_examples=200, deadline=None)
@given(pixels=bitmaps(), data=st.data())
def test_the_share_of_each_block_is_that_of_its_pixels(pixels: Bools, data: st.DataObject) -> None:
    height, width = pixels.shape
    size_wh = data.draw(st.tuples(st.integers(1, width), st.integers(1, height)))
    margin = data.draw(st.integers(0, 3))
    columns, rows = Blocks.split(width, size_wh[0]), Blocks.split(height, size_wh[1])

    coverage = mask_coverage(mask_of(pixels), columns, rows, margin)

    shares = np.zeros((size_wh[1], size_wh[0]), np.uint8)
    if coverage is None:
        assert not pixels.any()
    else:
        down, across = coverage.shares.shape
        shares[coverage.top : coverage.top + down, coverage.left : coverage.left + across] = coverage.shares
    blocks = [np.split(row, columns.bounds[1:-1], axis=1) for row in np.split(pixels, rows.bounds[1:-1])]
    expected = [[255 * block.mean() for block in row] for row in blocks]
    assert np.abs(shares - np.array(expected)).max() <= 0.501


@pytest.mark.parametrize("size_wh", [(1, 1), (64, 48), (99, 70), (100, 71), (100, 300), (17, 16)])
def test_masks_are_scaled_as_pillow_scales_them(size_wh: tuple[int, int]) -> None:
    y, x = np.mgrid[:300, :100]
    pixels = np.hypot(x - 40, (y - 120) / 2) < 30 + 5 * np.sin(x / 3)

    coverage = mask_coverage(mask_of(pixels), Blocks.split(100, size_wh[0]), Blocks.split(300, size_wh[1]), 1000)

    assert coverage is not None
    pillow = Image.fromarray(pixels.view(np.uint8) * np.uint8(255)).resize(size_wh, Image.Resampling.BOX)
    assert np.abs(coverage.shares.astype(int) - np.asarray(pillow)).max() <= 1  # Pillow rounds twice


@settings(max_examples=300, deadline=None)
@given(
    pixels=bitmaps(),
    grey=st.integers(0, 10**6),
    times=st.sampled_from([1, 3, 7]),
    sigma=st.floats(0.8, 8.0) | st.sampled_from([0.8, 1.0, 0.8 * 2048 / 420]),
)
def test_masks_are_blurred_as_pillow_blurs_them(pixels: Bools, grey: int, times: int, sigma: float) -> None:
    shares = np.where(pixels, 255, 0).astype(np.uint8).repeat(times, 0).repeat(times, 1)
    shares[:: 3 * times] = np.random.default_rng(grey).integers(0, 256, shares.shape[1])  # covered in part
    pillow = np.asarray(Image.fromarray(shares).filter(ImageFilter.GaussianBlur(sigma)))

    blur(shares, Box.of(sigma))

    assert np.array_equal(shares, pillow)


@pytest.mark.parametrize("sigma", [0.8, 1.5, 0.8 * 2048 / 420])
def test_a_blur_reaches_as_far_as_it_says(sigma: float) -> None:
    shares, box = np.zeros((9, 99), np.uint8), Box.of(sigma)
    shares[:, 50:] = 255

    blur(shares, box)

    assert not shares[:, : 50 - box.reach].any()
    assert shares[:, 50 + box.reach :].all()


@pytest.mark.parametrize("size_wh", [(1, 1), (5, 300), (64, 48), (99, 70), (100, 71), (100, 300), (17, 16)])
def test_photos_are_scaled_as_pillow_scales_them(size_wh: tuple[int, int]) -> None:
    random = np.random.default_rng(3)
    pixels = np.full((300, 100, 3), 99, np.uint8)
    for _ in range(40):
        (top, bottom), (left, right) = sorted(random.integers(0, 301, 2)), sorted(random.integers(0, 101, 2))
        # Neither black nor white: there Pillow clips what it mixed of a row before it mixes rows.
        pixels[top:bottom, left:right] = random.integers(70, 186, 3)

    scaled = scaled_down(pixels, size_wh)

    pillow = np.asarray(Image.fromarray(pixels).resize(size_wh, Image.Resampling.LANCZOS))
    assert np.array_equal(scaled, np.rint(scaled))
    assert np.abs(scaled - pillow).max() <= 1  # Pillow rounds twice


def test_each_of_all_widths_and_heights_is_split_into_blocks_as_large_as_each_other() -> None:
    for pixels, blocks in itertools.chain(((n, m) for n in range(1, 40) for m in range(1, n + 1)), [(100_000, 2048)]):
        split = Blocks.split(pixels, blocks)

        sizes = np.diff(split.bounds)
        assert (split.bounds[0], split.bounds[-1], len(split.block_of)) == (0, pixels, pixels)
        assert pixels // blocks <= sizes.min() <= sizes.max() <= -(-pixels // blocks)
