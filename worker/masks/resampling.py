"""How a mask's low-resolution logits map to the original's pixels: tables of torch's own bilinear weights.

A step of bilinear scaling makes each output value from two inputs along each axis.  SAM takes two steps: low
resolution → the model's padded input → (padding off) → the original.  SAM 2 takes one.  Here both have the
same form: each output coordinate has two middle coordinates, each middle coordinate two low-resolution ones, so an
output pixel depends on a band of at most three rows and three columns of the logits (two after one step).

The numbers are those of ``torch.nn.functional.interpolate`` on a CPU, bit for bit, in float32:

- scale = in / out; source(d) = scale · (d + ½) - ½, at least 0; its integer part is the first input, the next one
  the second, its fraction f is the second's weight and 1 - f the first's;
- a value is first · (1 - f) + second · f: the columns of both rows first, then the rows.  If torch was compiled for
  fused multiply-add, the product first · (1 - f) and scale · (d + ½) are not rounded;
- outputs of H + W ≤ 128 come from another kernel, which sums in another order: torch itself computes those few pixels.
  With a single thread torch uses that kernel for tensors of exactly three channels, too, as in the library: only then
  may the library's logits differ from these in the last bit.

See docs/decisions/0018-masks-without-full-size-pixels.md.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maskfleet.worker.sam.embedding import Frame

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

#: Up to this H + W of the output, torch uses another CPU kernel (aten/src/ATen/native/cpu/UpSampleKernel.cpp).
_OTHER_KERNEL_SIDES = 128
#: Masks that are scaled by torch at once: 4 MB each at SAM's input size.
_MASKS_BY_TORCH = 8


class Taps(NamedTuple):
    """One bilinear step along one axis: output i is input[first[i]] · first_weight[i] + the same of the second.

    If one of the products is not rounded, it is the first.  same_until: for each output, the next one that
    mixes other inputs.
    """

    first: Indices
    first_weight: Floats
    second: Indices
    second_weight: Floats
    same_until: Indices


class Axis(NamedTuple):
    """One axis, from low resolution over the middle to the original.

    outer: original ← middle.  inner: middle ← low resolution.  band_start, band_end: the low-resolution coordinates,
    both inclusive, that an output depends on.  first_from, end_until: for each low-resolution coordinate, the first
    output whose band begins there or later, and the first whose band ends later.  reach: how far a band goes beyond its
    first coordinate, at most.
    """

    outer: Taps
    inner: Taps
    band_start: Indices
    band_end: Indices
    first_from: Indices
    end_until: Indices
    reach: int


@dataclass(frozen=True, slots=True)
class Step:
    """One bilinear step: scale to to_hw, then keep the top left corner of size kept_hw."""

    to_hw: tuple[int, int]
    kept_hw: tuple[int, int]

    def take(self, logits: Tensor) -> Tensor:
        """Scale (K, h, w) as the library does."""
        height, width = self.kept_hw
        return interpolate(logits[:, None], self.to_hw, mode="bilinear", align_corners=False)[:, 0, :height, :width]


class Grid(NamedTuple):
    """Both axes.  fused: whether the first product of a sum is not rounded."""

    rows: Axis
    columns: Axis
    fused: bool


@dataclass(frozen=True, slots=True)
class BilinearMap:
    """The grid of an image's pixels over logits, after the small steps that torch computes itself."""

    grid: Grid
    by_torch: tuple[Step, ...] = ()

    def prepare(self, logits: Tensor) -> Floats:
        """Apply torch's own steps to logits (K, h, w) on any device, and return them ready for the axes."""
        values = logits.to("cpu", torch.float32)
        if self.by_torch:  # a few masks at a time: the middle may be large though the output is small
            values = torch.cat([self._stepped(few) for few in torch.split(values, _MASKS_BY_TORCH)])
        return np.ascontiguousarray(values.numpy())

    def _stepped(self, logits: Tensor) -> Tensor:
        for step in self.by_torch:
            logits = step.take(logits)
        return logits


def two_steps(
    low_hw: tuple[int, int], padded_hw: tuple[int, int], scaled_hw: tuple[int, int], original_hw: tuple[int, int]
) -> BilinearMap:
    """Return SAM's mapping: scale to the model's padded input, crop the padding, scale to the original."""
    return _compose(low_hw, Step(padded_hw, scaled_hw), Step(original_hw, original_hw))


def one_step(low_hw: tuple[int, int], original_hw: tuple[int, int]) -> BilinearMap:
    """Return SAM 2's mapping: the logits cover the whole image and are scaled once."""
    return _compose(low_hw, Step(original_hw, original_hw))


def bilinear_map_of(low_hw: tuple[int, int], frame: Frame) -> BilinearMap:
    """Return how low-resolution logits cover the original in a frame."""
    if frame.keeps_aspect:
        return two_steps(low_hw, frame.padded_hw, frame.scaled_hw, frame.original_hw)
    return one_step(low_hw, frame.original_hw)


@functools.lru_cache(maxsize=8)
def _compose(low_hw: tuple[int, int], *steps: Step) -> BilinearMap:
    """Compose the steps that follow the last one that torch must compute itself."""
    small = [sum(step.to_hw) <= _OTHER_KERNEL_SIDES for step in steps]
    own = steps[len(small) - small[::-1].index(True) :] if any(small) else steps
    by_torch = steps[: len(steps) - len(own)]
    start_hw = by_torch[-1].kept_hw if by_torch else low_hw
    rounding = torch_rounding()
    rows, columns = (
        _axis(start_hw[side], [(step.to_hw[side], step.kept_hw[side]) for step in own], rounding) for side in (0, 1)
    )
    return BilinearMap(Grid(rows, columns, rounding is not Rounding.NEITHER), by_torch)


def _axis(start: int, steps: list[tuple[int, int]], rounding: Rounding) -> Axis:
    taps, size = [], start
    for to, kept in steps:
        taps.append(_taps(size, to, kept, rounding))
        size = kept
    while len(taps) < 2:
        # A step that keeps the size is a copy: v · 1 + v · 0.
        taps.insert(0, _taps(start, start, start, rounding))
    inner, outer = taps
    band_start = np.minimum(inner.first, inner.second)[np.minimum(outer.first, outer.second)]
    band_end = np.maximum(inner.first, inner.second)[np.maximum(outer.first, outer.second)]
    first_from = np.searchsorted(band_start, np.arange(start))
    end_until = np.searchsorted(band_end, np.arange(start), side="right")
    return Axis(outer, inner, band_start, band_end, first_from, end_until, int((band_end - band_start).max()))


def _taps(size: int, to: int, kept: int, rounding: Rounding) -> Taps:
    """Return the first kept outputs of a step between two sizes, as in ATen's compute_source_index_and_lambda."""
    ones, zeros = np.ones(kept, dtype=np.float32), np.zeros(kept, dtype=np.float32)
    if size == to:
        same = np.arange(kept)
        return Taps(same, ones, same, zeros, same + 1)
    half = np.float32(0.5)
    scale, middles = np.float32(size) / np.float32(to), np.arange(kept, dtype=np.float32) + half
    # A product of two float32 is exact in float64, which leaves one rounding: that of the fused operation.
    source = (scale.astype(np.float64) * middles - 0.5).astype(np.float32)
    if rounding is Rounding.NEITHER:
        source = scale * middles - half
    source = np.maximum(source, 0)
    first = np.minimum(source.astype(np.int64), size - 1)
    fraction = np.clip(source - first.astype(np.float32), 0, 1).astype(np.float32)
    second = np.minimum(first + 1, size - 1)
    if rounding is Rounding.SECOND:
        return Taps(second, fraction, first, ones - fraction, _same_until(first))
    return Taps(first, ones - fraction, second, fraction, _same_until(first))


def _same_until(first: Indices) -> Indices:
    """Return for each output the next one with other inputs.  first: the lower of its two, which the other follows."""
    ends = np.append(np.flatnonzero(np.diff(first)) + 1, len(first))
    return ends[np.searchsorted(ends, np.arange(len(first)), side="right")]


class Rounding(Enum):
    """Which of the two products in first · weight + second · weight is not rounded before the sum."""

    NEITHER = "neither"
    FIRST = "first"
    SECOND = "second"


@functools.cache
def torch_rounding() -> Rounding:
    """Find out how torch rounds: it depends on the processor, on torch's compiler and on ATEN_CPU_CAPABILITY.

    On x86-64 with AVX2 the first product is fused, without AVX2 neither is.
    """
    size, to = 50, 333
    row = np.sin(np.arange(size, dtype=np.float32) ** 2) * 9
    theirs = Step((1, to), (1, to)).take(torch.from_numpy(row)[None, None])[0, 0].numpy()
    for rounding in (Rounding.FIRST, Rounding.SECOND):
        taps = _taps(size, to, to, rounding)
        exact = row[taps.first].astype(np.float64) * taps.first_weight  # 24 + 24 bits: exact
        if np.array_equal(theirs, (exact + row[taps.second] * taps.second_weight).astype(np.float32)):
            return rounding
    return Rounding.NEITHER
