"""PNGs of 16 bits: Pillow would keep 8 of each colour, before it is known which of them hold the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs

from maskfleet.jobs.errors import InvalidImage
from maskfleet.jobs.image_types import check_size, png_size_wh
from maskfleet.worker.image.colours import Colours, row_ranges
from maskfleet.worker.image.file_checks import refused_when_broken
from maskfleet.worker.image.picture import Band, Decoded, Turn, exif_orientation
from maskfleet.worker.image.png import exif_of
from maskfleet.worker.image.values import Samples

#: Four samples of 2 bytes, and the table and copies of a band.
_BYTES_PER_PIXEL = 16


@dataclass(frozen=True, slots=True)
class DeepPng:
    """A PNG of 16 bits.  data: without metadata."""

    data: bytes
    size_wh: tuple[int, int]
    format: str = "PNG"

    @property
    def stored_pixels(self) -> int:
        return self.size_wh[0] * self.size_wh[1]

    @property
    def decoding_bytes(self) -> int:
        return _BYTES_PER_PIXEL * self.stored_pixels

    def decoded(self) -> Decoded:
        """Decode the image, or the default image of an animation, as a whole."""
        with refused_when_broken("PNG", self.data):
            samples: Samples = imagecodecs.png_decode(self.data)
            samples = samples.reshape(self.size_wh[1], self.size_wh[0], -1)
            parts = [samples[rows] for rows in row_ranges(*samples.shape[:2])]
            colours = Colours.of_png(samples.shape[2]).with_ranges(lambda: iter(parts))
            turn = Turn(exif_orientation(exif_of(self.data)), self.size_wh)
        return Decoded(turn.upright_wh, colours.values, _bands(parts, colours, turn))


def open_deep_png(data: bytes, max_pixels: int) -> DeepPng:
    """Check a PNG's size; raises InvalidImage: ``image_too_large``, ``image_corrupt``."""
    size_wh = png_size_wh(data)
    check_size(size_wh, max_pixels)
    if 0 in size_wh:
        raise InvalidImage("image_corrupt", "The PNG file says that it has no pixels.")
    return DeepPng(data, size_wh)


def _bands(parts: list[Samples], colours: Colours, turn: Turn) -> Iterator[Band]:
    top = 0
    for part in parts:
        yield turn.band(top, 0, colours.rgb(part))
        top += part.shape[0]
