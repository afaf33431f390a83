"""An image file of which only the header has been read, whichever library reads its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image

from maskfleet.worker.image.file_checks import DECODER_ERRORS
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.image.values import Pixels, ValueRange

#: About the pixels in a band: few compared with an image, enough to make the cost per band negligible.
BAND_PIXELS = 2**20
#: Orientations that mirror rows or columns as stored, before those that swap rows and columns.
#: Source: Exif 2.32, 4.6.4.
_MIRROR_ROWS, _MIRROR_COLUMNS, _SWAP = (3, 4, 6, 7), (2, 3, 7, 8), (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the upright picture.  pixels: (h, w, 3) RGB, the first of them at ``top_left``."""

    top_left: tuple[int, int]
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Decoded:
    """The upright picture.  size_wh: of all bands together.  values: None for a file of at most 8 bits.

    georeference: None for a file that has none, as most.
    """

    size_wh: tuple[int, int]
    values: ValueRange | None
    bands: Iterator[Band]
    georeference: Georeference | None = None


class Picture(Protocol):
    """A file whose header is read and checked."""

    @property
    def format(self) -> str: ...

    @property
    def stored_pixels(self) -> int: ...

    @property
    def decoding_bytes(self) -> int:
        """The memory that its decoder may need at once, apart from the file."""

    def decoded(self) -> Decoded:
        """Decode the first frame.

        Raises InvalidImage, here and from the bands: ``image_truncated``, ``image_corrupt``,
        ``image_needs_too_much_memory``, ``image_unsupported``.
        """


@dataclass(frozen=True, slots=True)
class Turn:
    """How a picture is turned to be upright.  orientation: as in Exif, 1 to 8.  size_wh: as stored."""

    orientation: int
    size_wh: tuple[int, int]

    @property
    def upright_wh(self) -> tuple[int, int]:
        width, height = self.size_wh
        return (height, width) if self.orientation in _SWAP else (width, height)

    @property
    def stored_from_upright(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """How a place in the stored picture follows from the upright one: for x and for y, the shares of the upright x
        and y, and what is added.
        """
        across, down = ((0, 1, 0), (1, 0, 0)) if self.orientation in _SWAP else ((1, 0, 0), (0, 1, 0))
        if self.orientation in _MIRROR_COLUMNS:
            across = (-across[0], -across[1], self.size_wh[0])
        if self.orientation in _MIRROR_ROWS:
            down = (-down[0], -down[1], self.size_wh[1])
        return across, down

    def band(self, top: int, left: int, pixels: Pixels) -> Band:
        """Turn a part of the stored picture.  pixels: (h, w, 3), the first of them at top, left."""
        if self.orientation == 1:
            return Band((top, left), pixels)
        height, width = pixels.shape[:2]
        # As items of three bytes: numpy copies them several times faster than along an axis of three.
        turned = np.ascontiguousarray(pixels).view("V3")[..., 0]
        if self.orientation in _MIRROR_ROWS:
            turned, top = turned[::-1], self.size_wh[1] - top - height
        if self.orientation in _MIRROR_COLUMNS:
            turned, left = turned[:, ::-1], self.size_wh[0] - left - width
        if self.orientation in _SWAP:
            turned, top, left = turned.T, left, top
        return Band((top, left), np.ascontiguousarray(turned)[..., None].view(np.uint8))


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 without one; unreadable metadata is ignored, as in viewers."""
    block = Image.Exif()
    try:
        block.load(exif)
        orientation = block.get(ExifTags.Base.Orientation, 1)
    except DECODER_ERRORS:
        return 1
    return orientation if orientation in range(1, 9) else 1
