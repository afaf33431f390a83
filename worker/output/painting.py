"""Masks painted from their runs: as bits, as labels, and as the share of each pixel of a smaller picture.

Nothing here has a mask's full-size pixels at a byte each.  A mask is its spans down the columns (see masks/rle.py); of
each there are two marks, where it starts and where it stops, and one pass down the rows fills what is between.

All these kernels are in one file: numba's cache does not notice that a kernel in another file has changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskfleet.worker.masks.kernel import kernel
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.rle import Spans, column_spans

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint16]
Indices = npt.NDArray[np.int64]
#: Pixels of a row that are looked at at once: all outside a mask, all inside it, or some near its outline.
_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Bits:
    """The rows of an image that a mask is in, from row ``top`` on.

    rows: (N, W / 8, rounded up), a bit for each pixel, the leftmost the highest.
    """

    top: int
    rows: Bytes


def mask_bits(mask: Mask) -> Bits:
    """Return a mask as one bit per pixel."""
    spans = column_spans(mask.counts, mask.size_hw)
    top, bottom = _row_range(spans)
    rows = np.zeros((bottom - top, (mask.size_hw[1] + 7) // 8), np.uint8)
    _paint_bits(spans, top, rows)
    return Bits(top, rows)


def paint_label(mask: Mask, label: int, labels: Labels, taken: Bytes) -> None:
    """Write a label where the mask is and no other was before it.

    taken: (H, W / 8, rounded up), a bit for each pixel that has a label.
    """
    spans = column_spans(mask.counts, mask.size_hw)
    if len(spans):
        top, bottom = _row_range(spans)
        # Only the bytes from its first column to its last
        left, right = int(spans[0, 0]) // 8, int(spans[-1, 0]) // 8 + 1
        rows = np.zeros((bottom - top, right - left), np.uint8)
        spans[:, 0] -= 8 * left
        _paint_bits(spans, top, rows)
        _label_bits(rows, labels, taken, left, top, np.uint16(label))


@dataclass(frozen=True, slots=True)
class Blocks:
    """The pixels of one axis of an image, in as many blocks as a smaller picture has pixels.

    bounds: (blocks + 1,), where they start; block_of: (pixels,), the block of each.
    """

    bounds: Indices
    block_of: Indices

    @classmethod
    def split(cls, pixels: int, blocks: int) -> Blocks:
        """Split an axis as Pillow's BOX filter does.  blocks: at most as many as pixels."""
        bounds = (2 * pixels * np.arange(blocks + 1) + blocks) // (2 * blocks)
        return cls(bounds, np.repeat(np.arange(blocks), np.diff(bounds)))


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of each pixel of a smaller picture a mask covers, 0 to 255, from (left, top) on."""

    left: int
    top: int
    shares: Bytes


def mask_coverage(mask: Mask, columns: Blocks, rows: Blocks, margin: int) -> Coverage | None:
    """Scale a mask down, to its box and a margin around it, as far as that is in the picture; None if it is empty."""
    spans = column_spans(mask.counts, mask.size_hw)
    if not len(spans):
        return None
    first, last = _row_range(spans)
    left = max(0, int(columns.block_of[spans[0, 0]]) - margin)
    right = min(len(columns.bounds) - 1, int(columns.block_of[spans[-1, 0]]) + 1 + margin)
    top = max(0, int(rows.block_of[first]) - margin)
    bottom = min(len(rows.bounds) - 1, int(rows.block_of[last - 1]) + 1 + margin)
    marks = np.zeros((bottom - top + 2, right - left), np.float32)
    shares = np.empty((bottom - top, right - left), np.uint8)
    widths = np.diff(columns.bounds[left : right + 1]).astype(np.float32)
    _cover(spans, columns.block_of, rows.block_of, rows.bounds, left, top, marks, widths, shares)
    return Coverage(left, top, shares)


@kernel
def blend(canvas: Floats, soft: Bytes, left: int, top: int, keep: Floats, add: Floats) -> None:
    """Blend colours into the canvas (H, 3 W), from (left, top) on.

    keep (256,), add (256, 3): for each value of soft, how much of the canvas stays, and what is added to it; 0 changes
    nothing.
    """
    inside = np.empty(3 * _TOGETHER, np.float32)
    for x in range(len(inside)):
        inside[x] = add[255, x % 3]
    for y in range(len(soft)):
        row = canvas[top + y, 3 * left :]
        for start in range(0, soft.shape[1], _TOGETHER):
            values, out = soft[y, start : start + _TOGETHER], row[3 * start : 3 * (start + _TOGETHER)]
            every, some = np.uint8(255), np.uint8(0)
            for x in range(len(values)):
                every, some = every & values[x], some | values[x]
            if every == 255 and len(values) == _TOGETHER:
                for x in range(3 * _TOGETHER):
                    out[x] = out[x] * keep[255] + inside[x]
            elif some:
                for x in range(len(values)):
                    value = values[x]
                    out[3 * x] = out[3 * x] * keep[value] + add[value, 0]
                    out[3 * x + 1] = out[3 * x + 1] * keep[value] + add[value, 1]
                    out[3 * x + 2] = out[3 * x + 2] * keep[value] + add[value, 2]


@kernel
def measure_labels(labels: Labels, areas: Indices, boxes: Indices) -> None:
    """Add up the pixels of each label but 0, and their boxes.

    areas (65,536), boxes (65,536, 4): zeros; x0, y0, x1, y1, past the last pixel.
    """
    for y in range(len(labels)):
        row, x = labels[y], 0
        while x < len(row):
            start, label = x, row[x]
            while x < len(row) and row[x] == label:
                x += 1
            if label:
                box = boxes[label]
                if areas[label] == 0:
                    box[0], box[1] = start, y
                areas[label] += x - start
                box[0], box[2], box[3] = min(box[0], start), max(box[2], x), y + 1


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    mask = Mask("112", (2, 2), 1, (0, 1, 1, 1), 1, 1, (), (0, 0, 2, 2), None, None)
    mask_bits(mask)
    labels = np.zeros((2, 2), np.uint16)
    paint_label(mask, 1, labels, np.zeros((2, 1), np.uint8))
    measure_labels(labels, np.zeros(2**16, np.int64), np.zeros((2**16, 4), np.int64))
    mask_coverage(mask, Blocks.split(2, 1), Blocks.split(2, 1), 0)
    canvas, soft = np.zeros((1, 3), np.float32), np.ones((1, 1), np.uint8)
    blend(canvas, soft, 0, 0, np.zeros(256, np.float32), np.zeros((256, 3), np.float32))


def _row_range(spans: Spans) -> tuple[int, int]:
    """Return the first row of the spans and the first below them."""
    return (int(spans[:, 1].min()), int(spans[:, 2].max())) if len(spans) else (0, 0)


@kernel
def _paint_bits(spans: Spans, top: int, rows: Bytes) -> None:
    # A bit changes where a span starts and below where it stops
    for span in range(len(spans)):
        column, start, stop = spans[span, 0], spans[span, 1] - top, spans[span, 2] - top
        bit = 0x80 >> (column & 7)
        rows[start, column >> 3] ^= bit
        if stop < len(rows):
            rows[stop, column >> 3] ^= bit
    for y in range(1, len(rows)):
        row, above = rows[y], rows[y - 1]
        for x in range(len(row)):
            row[x] ^= above[x]


@kernel
def _label_bits(rows: Bytes, labels: Labels, taken: Bytes, left: int, top: int, label: np.uint16) -> None:
    for y in range(len(rows)):
        bits, occupied, row = rows[y], taken[top + y, left:], labels[top + y, 8 * left :]
        for byte in range(len(bits)):
            free = bits[byte] & ~occupied[byte]
            occupied[byte] |= bits[byte]
            if free == 0xFF:
                for bit in range(8):
                    row[8 * byte + bit] = label
            elif free:
                for bit in range(8):
                    if free & (0x80 >> bit):
                        row[8 * byte + bit] = label


@kernel
def _cover(
    spans: Spans,
    column_of: Indices,
    row_of: Indices,
    row_bounds: Indices,
    left: int,
    top: int,
    marks: Floats,
    widths: Floats,
    shares: Bytes,
) -> None:
    """Fill shares.  marks: zeros, of two more rows.  column_of, row_of: the block of each pixel."""
    # Each column of pixels adds to its block from the row where a span starts on, and no more from where it stops:
    # in the block of that row by the part of its pixels that are below, and in the next one by the rest.
    for span in range(len(spans)):
        column = column_of[spans[span, 0]] - left
        for end in range(2):
            y, sign = spans[span, 1 + end], np.float32(1 - 2 * end)
            if y < len(row_of):
                block = row_of[y]
                below = np.float32(row_bounds[block + 1] - y) / np.float32(row_bounds[block + 1] - row_bounds[block])
                marks[block - top, column] += sign * below
                marks[block - top + 1, column] += sign * (np.float32(1) - below)
    covered = np.zeros(len(widths), np.float32)
    for y in range(len(shares)):
        row, out = marks[y], shares[y]
        for x in range(len(out)):
            covered[x] += row[x]
            out[x] = np.int32(covered[x] / widths[x] * np.float32(255) + np.float32(0.5))
