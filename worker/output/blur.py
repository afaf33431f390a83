"""A Gaussian blur of masks, the same bytes as Pillow's, which costs only what is near an outline.

Pillow blurs with three passes of a box along the rows, then three along the columns, each rounded to whole numbers.  A
pixel whose neighbours are like it, as far as the three passes reach, stays what it is: so each row is blurred only near
its changes, and then the columns, several side by side, near theirs.
Source: P. Gwosdek et al. 2011, "Theoretical Foundations of Gaussian Convolution by Extended Box Filtering"; Pillow,
src/libImaging/BoxBlur.c.

All these kernels are in one file: numba's cache does not notice that a kernel in another file has changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskfleet.worker.masks.kernel import kernel

Bytes = npt.NDArray[np.uint8]
_PASSES = 3
#: Columns that are blurred at once, and pixels of a row that are looked at at once: what the compiler makes vectors of.
_TOGETHER = 16
#: Weights are multiples of 2**-24.
_ONE, _HALF, _SHIFT = 1 << 24, np.uint32(1 << 23), np.uint32(24)


@dataclass(frozen=True, slots=True)
class Box:
    """One pass: the mean of 2 · radius + 1 pixels and, in part, of one more at either end.

    inner, outer: the weights of those pixels, in parts of 2**24.
    """

    radius: int
    inner: np.uint32
    outer: np.uint32

    @classmethod
    def of(cls, sigma: float) -> Box:
        """Return the box of which three passes have a Gaussian's variance, in Pillow's precision."""
        variance = np.float32(sigma) * np.float32(sigma) / np.float32(_PASSES)
        length = np.float32(math.sqrt(12.0 * float(variance) + 1.0))
        whole = np.float32(math.floor((float(length) - 1.0) / 2.0))
        part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
        radius = np.float32(whole + part)
        inner = int(np.float32(_ONE) / (radius * 2 + 1))
        return cls(int(radius), np.uint32(inner), np.uint32((_ONE - (int(radius) * 2 + 1) * inner) // 2))

    @property
    def reach(self) -> int:
        """How far from a change three passes change pixels."""
        return _PASSES * (self.radius + 1)


def blur(pixels: Bytes, box: Box) -> None:
    """Blur (H, W) in place; the pixels at its edges count as going on beyond them."""
    _blur_rows(pixels, box.radius, box.inner, box.outer)
    _blur_columns(pixels, box.radius, box.inner, box.outer)


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    blur(np.eye(2, dtype=np.uint8), Box.of(1))


@kernel
def _blur_rows(pixels: Bytes, radius: int, inner: np.uint32, outer: np.uint32) -> None:
    reach, pad = _PASSES * (radius + 1), radius + 1
    width = pixels.shape[1]
    line, made = np.empty(width + 2 * pad, np.uint8), np.empty(width + 2 * pad, np.uint8)
    for y in range(len(pixels)):
        row = pixels[y]
        change = _next_change(row, 0)
        while change < width:
            start, stop = max(0, change - reach), change + reach
            change = _next_change(row, change)
            while change < width and change - reach <= stop:
                stop = change + reach
                change = _next_change(row, change)
            stop = min(stop, width)
            count = stop - start
            for x in range(count):
                line[pad + x] = row[start + x]
            for _ in range(_PASSES):
                line[:pad], line[pad + count : 2 * pad + count] = line[pad], line[pad + count - 1]
                total = np.uint32(0)
                for x in range(2 * radius + 1):
                    total += line[x]
                for x in range(count):
                    total += line[x + 2 * radius + 1]
                    total -= line[x]
                    far = np.uint32(line[x]) + np.uint32(line[x + 2 * pad])
                    made[pad + x] = np.uint32(total * inner + far * outer + _HALF) >> _SHIFT
                line, made = made, line
            for x in range(count):
                row[start + x] = line[pad + x]


@kernel
def _next_change(row: Bytes, x: int) -> int:
    """Return the first place after x whose pixel differs from the one before it; the row's length if there is none."""
    while x + _TOGETHER < len(row):
        differs, these, those = np.uint8(0), row[x : x + _TOGETHER], row[x + 1 : x + 1 + _TOGETHER]
        for ahead in range(_TOGETHER):
            differs |= these[ahead] ^ those[ahead]
        if differs:
            break
        x += _TOGETHER
    x += 1
    while x < len(row) and row[x] == row[x - 1]:
        x += 1
    return x


@kernel
def _blur_columns(pixels: Bytes, radius: int, inner: np.uint32, outer: np.uint32) -> None:
    reach, pad = _PASSES * (radius + 1), radius + 1
    height, width = pixels.shape
    lines, made = np.zeros((2, height + 2 * pad, _TOGETHER), np.uint8)
    totals = np.zeros(_TOGETHER, np.uint32)
    for left in range(0, width, _TOGETHER):
        strip = pixels[:, left : left + _TOGETHER]
        change = _next_changed_row(strip, 0)
        while change < height:
            start, stop = max(0, change - reach), change + reach
            change = _next_changed_row(strip, change)
            while change < height and change - reach <= stop:
                stop = change + reach
                change = _next_changed_row(strip, change)
            stop = min(stop, height)
            count = stop - start
            for y in range(count):
                for x in range(strip.shape[1]):
                    lines[pad + y, x] = strip[start + y, x]
            for _ in range(_PASSES):
                for y in range(pad):
                    for x in range(_TOGETHER):
                        lines[y, x], lines[pad + count + y, x] = lines[pad, x], lines[pad + count - 1, x]
                totals[:] = 0
                for y in range(2 * radius + 1):
                    for x in range(_TOGETHER):
                        totals[x] += lines[y, x]
                for y in range(count):
                    leaving, entering, far = lines[y], lines[y + 2 * radius + 1], lines[y + 2 * pad]
                    out = made[pad + y]
                    for x in range(_TOGETHER):
                        totals[x] += np.uint32(entering[x]) - np.uint32(leaving[x])
                        ends = np.uint32(leaving[x]) + np.uint32(far[x])
                        out[x] = np.uint32(totals[x] * inner + ends * outer + _HALF) >> _SHIFT
                lines, made = made, lines
            for y in range(count):
                for x in range(strip.shape[1]):
                    strip[start + y, x] = lines[pad + y, x]


@kernel
def _next_changed_row(strip: Bytes, y: int) -> int:
    """Return the first row after y that differs from the one before it; the strip's height if there is none."""
    y += 1
    while y < len(strip):
        differs = np.uint8(0)
        for x in range(strip.shape[1]):
            differs |= strip[y, x] ^ strip[y - 1, x]
        if differs:
            break
        y += 1
    return y
