"""The one rule by which samples deeper than 8 bits become 8 bits.

A depth that is no whole number of bytes names its white: 12 bits reach from 0 to 4095.  16, 32 and 64 bits and floats
are containers: cameras, microscopes and satellites fill as much of them as they need.  There white is the smallest of
…, ¼, ½, 1, 3, 7, …, 2ⁿ−1 that no value exceeds (fractions for floats only) and 0 is black; if values are negative, the
lowest is black and the highest white.  All colours of an image share the range.  In files whose 0 is white the ends
are swapped.  NaN and what a file declares as no data do not count, and are black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[Any]  # Any: of each depth that a file may have
Pixels = npt.NDArray[np.uint8]
#: The lowest and the highest of some values.
Ends = tuple[float, float]

#: Depths that say nothing about the values in them.
_CONTAINERS = (16, 32, 64)


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The values that become 0 and 255.

    stretched: whether it was chosen by the values in the image, and is not the range of the file's depth.
    """

    low: float
    high: float
    stretched: bool


@dataclass(frozen=True, slots=True)
class Depth:
    """What a file says about its samples.  kind: "u", "i" or "f", as in numpy.  no_data: a value that means none."""

    bits: int
    kind: str = "u"
    no_data: float | None = None

    @property
    def whole(self) -> ValueRange:
        """The range of this depth; of floats, by convention, 0 to 1."""
        if self.kind == "f":
            return ValueRange(0.0, 1.0, False)
        if self.kind == "i":
            return ValueRange(-(2.0 ** (self.bits - 1)), 2.0 ** (self.bits - 1) - 1, False)
        return ValueRange(0.0, 2.0**self.bits - 1, False)

    @property
    def names_white(self) -> bool:
        return self.kind == "u" and self.bits not in _CONTAINERS

    def range_between(self, ends: Iterable[Ends | None]) -> ValueRange:
        """Choose the range for an image.  ends: of its parts, as `ends` returns them."""
        found = [part for part in ends if part]
        if self.names_white or not found:
            return self.whole
        low, high = min(low for low, _ in found), max(high for _, high in found)
        if low >= 0:
            low, high = 0.0, _white(high, self.kind)
        return ValueRange(low, high, (low, high) != (self.whole.low, self.whole.high))

    def ends(self, samples: Samples) -> Ends | None:
        """Return the lowest and the highest of the samples that count; None if none does."""
        if self.kind == "f":
            samples = samples[np.isfinite(samples)]
        if self._empty is not None:
            samples = samples[samples != self._empty]
        return (float(samples.min()), float(samples.max())) if samples.size else None

    def eight_bits(self, samples: Samples, values: ValueRange, *, inverted: bool = False) -> Pixels:
        """Scale samples to 0..255.  inverted: 0 is white."""
        if samples.dtype == np.bool_:
            samples = samples.view(np.uint8)
        if samples.dtype in (np.uint8, np.uint16):
            table = self._scaled(np.arange(np.iinfo(samples.dtype).max + 1, dtype=samples.dtype), values, inverted)
            return table[samples]
        return self._scaled(samples, values, inverted)

    def _scaled(self, samples: Samples, values: ValueRange, inverted: bool) -> Pixels:
        exact = samples.astype(np.float64)
        nothing = np.isnan(exact) if self._empty is None else np.isnan(exact) | (samples == self._empty)
        exact[nothing] = values.low
        np.clip(exact, values.low, values.high, out=exact)
        # By halves: the ends of float64 are too far apart for a float64.
        share = (exact / 2 - values.low / 2) / (max(values.high / 2 - values.low / 2, 1e-300))
        shown = np.rint((1 - share if inverted else share) * 255).astype(np.uint8)
        shown[nothing] = 0
        return shown

    @property
    def _empty(self) -> Any:  # Any: a scalar of the samples' type
        """The value that means none, as the samples would hold it."""
        if self.no_data is None or math.isnan(self.no_data):
            return None
        if self.kind == "f":
            with np.errstate(over="ignore"):
                return {16: np.float16, 64: np.float64}.get(self.bits, np.float32)(self.no_data)
        return int(self.no_data) if self.no_data.is_integer() else None


def _white(highest: float, kind: str) -> float:
    """Return the smallest of …, ¼, ½, 1, 3, 7, … that is not below the highest value."""
    if kind == "f" and 0 < highest <= 1:
        return 2.0 ** math.ceil(math.log2(highest))
    bits = max(1, math.floor(highest).bit_length())
    if bits < 1024 and 2**bits - 1 < highest:
        bits += 1
    return float(2**bits - 1) if bits < 1024 else highest
