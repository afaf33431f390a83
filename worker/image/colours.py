"""From samples, as a TIFF or a deep PNG stores them, to 8-bit RGB.

Sources: TIFF 6.0, sections 3 to 6, 16, 18, 20 and 21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskfleet.worker.image.picture import BAND_PIXELS
from maskfleet.worker.image.values import Depth, Pixels, Samples, ValueRange


class Model(Enum):
    """What the samples of a pixel are."""

    GREY = "grey"
    RGB = "rgb"
    PALETTE = "palette"
    CMYK = "cmyk"
    YCBCR = "ycbcr"


@dataclass(frozen=True, slots=True)
class YCbCr:
    """The tags of a YCbCr image, with their defaults.  luma: red's, green's and blue's share of Y."""

    luma: tuple[float, ...] = (0.299, 0.587, 0.114)
    black_white: tuple[float, ...] = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


@dataclass(frozen=True, slots=True)
class Colours:
    """How samples become colours.

    shown: which samples of a pixel are the colour; alpha: which is its opacity.  `rgb` takes these alone, in this
    order.  premultiplied: the colours are already darkened by alpha.  inverted: 0 is white.
    palette: (n, 3).  values, alpha_values: the ranges that become 0..255, chosen by `with_ranges`.
    """

    model: Model
    depth: Depth
    shown: tuple[int, ...]
    alpha: int | None = None
    premultiplied: bool = False
    inverted: bool = False
    palette: Pixels | None = None
    ycbcr: YCbCr = YCbCr()
    range: ValueRange | None = None
    alpha_range: ValueRange | None = None

    @classmethod
    def of_png(cls, samples: int) -> Self:
        """Return those of a 16-bit PNG with so many samples per pixel."""
        shown = (0,) if samples < 3 else (0, 1, 2)
        model = Model.GREY if samples < 3 else Model.RGB
        return cls(model, Depth(16), shown, alpha=samples - 1 if samples in (2, 4) else None)

    @property
    def needed(self) -> tuple[int, ...]:
        return self.shown if self.alpha is None else (*self.shown, self.alpha)

    @property
    def values(self) -> ValueRange | None:
        """The range as callers see it; None for a palette, and for 8 bits and less: they are shown as they are."""
        is_as_stored = self.model is Model.PALETTE or (self.depth.names_white and self.depth.bits <= 8)
        return None if is_as_stored else self.range

    def with_ranges(self, parts: Callable[[], Iterator[Samples]]) -> Self:
        """Choose the ranges by what is in the image.  parts: what together is the image; called if that is needed."""
        whole, depth = self.depth.whole, self.depth
        if depth.names_white or self.model not in (Model.GREY, Model.RGB):
            return replace(self, range=whole, alpha_range=whole)
        colours = len(self.shown)
        ends = [(depth.ends(part[..., :colours]), depth.ends(part[..., colours:])) for part in parts()]
        if self.premultiplied:
            chosen = depth.range_between(end for both in ends for end in both)
            return replace(self, range=chosen, alpha_range=chosen)
        alpha = depth.range_between(end for _, end in ends)
        if depth.kind == "f" and alpha.high <= 1:
            alpha = whole
        return replace(self, range=depth.range_between(end for end, _ in ends), alpha_range=alpha)

    def rgb(self, samples: Samples) -> Pixels:
        """Convert samples (h, w, needed), a few at a time; return (h, w, 3)."""
        height, width = samples.shape[:2]
        pixels = np.empty((height, width, 3), np.uint8)
        for rows in row_ranges(height, width):
            pixels[rows] = self._rgb(samples[rows])
        return pixels

    def _rgb(self, samples: Samples) -> Pixels:
        colours = self._opaque(samples[..., : len(self.shown)])
        if self.alpha is None:
            return colours
        alpha = self.depth.eight_bits(samples[..., len(self.shown) :], self.alpha_range or self.depth.whole)
        seen = colours.astype(np.uint32)
        if self.premultiplied:
            darkened: Pixels = np.minimum(seen + (255 - alpha), 255).astype(np.uint8)
            return darkened
        # On white, as other formats are.
        opacity = alpha.astype(np.uint32)
        on_white: Pixels = ((seen * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        return on_white

    def _opaque(self, samples: Samples) -> Pixels:
        if self.palette is not None:
            painted: Pixels = self.palette[samples[..., 0].astype(np.intp)]
            return painted
        if self.depth.bits == 8 and samples.dtype == np.uint8 and not self.inverted:
            shown: Pixels = samples
        else:
            shown = self.depth.eight_bits(samples, self.range or self.depth.whole, inverted=self.inverted)
        match self.model:
            case Model.GREY:
                return np.broadcast_to(shown, (*shown.shape[:2], 3))
            case Model.CMYK:
                return np.asarray(Image.fromarray(np.ascontiguousarray(shown), "CMYK").convert("RGB"))
            case Model.YCBCR:
                return _from_ycbcr(shown, self.ycbcr)
        return shown


def row_ranges(height: int, width: int) -> Iterator[slice]:
    """Yield ranges of rows that together are the height, each of about BAND_PIXELS."""
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _from_ycbcr(samples: Pixels, tags: YCbCr) -> Pixels:
    red_share, green_share, blue_share = tags.luma
    black, white = np.array(tags.black_white[0::2]), np.array(tags.black_white[1::2])
    coded: npt.NDArray[np.float64] = (samples - black) * (np.array([255.0, 127.0, 127.0]) / (white - black))
    y, cb, cr = coded[..., 0], coded[..., 1], coded[..., 2]
    red = y + cr * (2 - 2 * red_share)
    blue = y + cb * (2 - 2 * blue_share)
    green = (y - red_share * red - blue_share * blue) / green_share
    return np.rint(np.clip(np.stack([red, green, blue], axis=-1), 0, 255)).astype(np.uint8)
