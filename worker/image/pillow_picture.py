"""Images of 8 bits, decoded by Pillow: JPEG, PNG, WebP, BMP and GIF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from maskfleet.worker.image.file_checks import refused_when_broken
from maskfleet.worker.image.picture import BAND_PIXELS, Band, Decoded, Turn, exif_orientation

#: WebP's decoder holds two canvases of 4 bytes each besides what it passes to Pillow, 4 bytes, and Pillow's own 4; no
#: other format needs more.
BYTES_PER_PIXEL = 16


@dataclass(frozen=True, slots=True)
class PillowPicture:
    """A file that Pillow has opened."""

    image: Image.Image
    format: str
    data: bytes

    @property
    def stored_pixels(self) -> int:
        return self.image.width * self.image.height

    @property
    def decoding_bytes(self) -> int:
        return BYTES_PER_PIXEL * self.stored_pixels

    def decoded(self) -> Decoded:
        """Decode the first frame; apart from Pillow's own copy, one band is in memory at a time."""
        with refused_when_broken(self.format, self.data):
            self.image.load()
            # Not Image.getexif, which also takes the orientation from XMP; browsers do not.
            turn = Turn(exif_orientation(self.image.info.get("exif", b"")), self.image.size)
        return Decoded(turn.upright_wh, None, self._bands(turn))

    def _bands(self, turn: Turn) -> Iterator[Band]:
        width, height = self.image.size
        rows = max(1, BAND_PIXELS // width)
        with refused_when_broken(self.format, self.data):
            for top in range(0, height, rows):
                band = self.image.crop((0, top, width, min(top + rows, height)))
                yield turn.band(top, 0, np.asarray(_rgb(band)))


def _rgb(band: Image.Image) -> Image.Image:
    """Convert a band to RGB.

    Transparent pixels are laid on white.  Many viewers do so, and transformers' image processors; its
    pipeline drops alpha first, which reveals colours that nobody was meant to see.
    """
    if not ("A" in band.getbands() or "a" in band.getbands() or "transparency" in band.info):
        return band if band.mode == "RGB" else band.convert("RGB")  # which would copy it
    seen = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
