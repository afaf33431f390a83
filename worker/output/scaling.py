"""Photos scaled down with the Lanczos filter.

As Pillow's ``Image.resize``, without its copy of the photo at four bytes a pixel and a few times as fast: columns are
mixed for several rows at once.  It differs by rounding, and where a mix of pixels near black or white goes beyond them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskfleet.worker.masks.kernel import kernel

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
#: The filter's reach on either side, in pixels of the result.
_REACH = 3
#: Rows that are made at once: they and the photo's columns that they are mixed from stay in a core's cache.
_ROWS_AT_ONCE = 16
#: Columns that are read at once, for the same reason.
_COLUMNS_AT_ONCE = 1024


def scaled_down(pixels: Bytes, size_wh: tuple[int, int]) -> Floats:
    """Scale a photo (H, W, 3) to a size that is no larger.  Returns whole numbers, 0 to 255, as (h, w, 3)."""
    height, width = pixels.shape[:2]
    if (width, height) == size_wh:
        return pixels.astype(np.float32)
    out = np.empty((size_wh[1], size_wh[0], 3), np.float32)
    rows, columns = _weights(height, size_wh[1]), _weights(width, size_wh[0])
    _scale(pixels.reshape(height, 3 * width), *rows, *columns, out)
    return out


def warm_up() -> None:
    """Compile the kernel, or load it from the cache."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    scaled_down(pixels, (1, 1))
    pixels.setflags(write=False)  # another type to the compiler
    scaled_down(pixels, (1, 1))


def _weights(length: int, out_length: int) -> tuple[Indices, Floats]:
    """Return for each output where its inputs start, and their weights, (outputs, taps); some of the last are 0."""
    scale = length / out_length
    middles = (np.arange(out_length) + 0.5) * scale
    first = np.maximum(np.floor(middles - _REACH * scale + 0.5), 0).astype(np.int64)
    stop = np.minimum(np.floor(middles + _REACH * scale + 0.5), length).astype(np.int64)
    taps = int((stop - first).max())
    first = np.minimum(first, length - taps)
    distances = (first[:, None] + np.arange(taps) + 0.5 - middles[:, None]) / scale
    inside = (np.abs(distances) < _REACH) & (first[:, None] + np.arange(taps) < stop[:, None])
    weights = np.where(inside, np.sinc(distances) * np.sinc(distances / _REACH), 0)
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@kernel
def _scale(
    pixels: Bytes, row_first: Indices, row_weights: Floats, column_first: Indices, column_weights: Floats, out: Floats
) -> None:
    """Mix rows, then columns.  pixels: (H, 3 W)."""
    # Transposed: the values of a column of the photo for the rows at work stand side by side.
    mixed = np.empty((pixels.shape[1], _ROWS_AT_ONCE), np.float32)
    values, sums = np.empty(_COLUMNS_AT_ONCE, np.float32), np.empty(_ROWS_AT_ONCE, np.float32)
    for top in range(0, len(out), _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, len(out) - top)
        for left in range(0, pixels.shape[1], _COLUMNS_AT_ONCE):
            count = min(_COLUMNS_AT_ONCE, pixels.shape[1] - left)
            for row in range(rows):
                values[:] = 0
                for tap in range(row_weights.shape[1]):
                    weight = row_weights[top + row, tap]
                    source = pixels[row_first[top + row] + tap, left : left + count]
                    for x in range(count):
                        values[x] += weight * np.float32(source[x])
                for x in range(count):
                    mixed[left + x, row] = values[x]
        for x in range(out.shape[1]):
            for channel in range(3):
                sums[:] = 0
                for tap in range(column_weights.shape[1]):
                    weight = column_weights[x, tap]
                    source_rows = mixed[3 * (column_first[x] + tap) + channel]
                    for row in range(_ROWS_AT_ONCE):
                        sums[row] += weight * source_rows[row]
                for row in range(rows):
                    value = np.float32(np.floor(sums[row] + np.float32(0.5)))
                    out[top + row, x, channel] = min(max(value, np.float32(0)), np.float32(255))
