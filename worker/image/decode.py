"""Decode an image file as a viewer would show it: upright, in 8-bit colours, band by band."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from maskfleet.worker.image.file_checks import DECODER_ERRORS, open_image, refused_when_broken

#: The transpose for each EXIF orientation but the first.  Source: Exif 2.32, 4.6.4.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Those that turn rows into columns, and those after which the last stored row is the first row or column.
_QUARTERS = {_TURNS[number] for number in (5, 6, 7, 8)}
_LAST_ROW_FIRST = {_TURNS[number] for number in (3, 4, 6, 7)}
#: About the pixels in a band: few compared with an image, enough to make the cost per band negligible.
_BAND_PIXELS = 2**20


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded image.

    pixels: (H, W, 3) RGB, upright.  size_wh: of these pixels.  format: the file's, one of IMAGE_FORMATS.
    """

    pixels: npt.NDArray[np.uint8]
    size_wh: tuple[int, int]
    format: str


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the upright picture.  pixels: (h, w, 3) RGB, the first of them at ``top_left``."""

    top_left: tuple[int, int]
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file of which only the header has been read."""

    image: Image.Image
    format: str
    data: bytes

    @property
    def stored_pixels(self) -> int:
        return self.image.width * self.image.height

    def decoded(self) -> tuple[tuple[int, int], Iterator[Band]]:
        """Decode the first frame; return its upright size (W, H) and an iterator over bands that cover it.

        Apart from Pillow's own copy, one band is in memory at a time.
        Raises InvalidImage: ``image_truncated``, ``image_corrupt``, ``image_needs_too_much_memory``.
        """
        with refused_when_broken(self.format, self.data):
            self.image.load()
            turn = _turn(self.image)
        width, height = self.image.size
        return (height, width) if turn in _QUARTERS else (width, height), self._bands(turn)

    def _bands(self, turn: Image.Transpose | None) -> Iterator[Band]:
        width, height = self.image.size
        rows = max(1, _BAND_PIXELS // width)
        with refused_when_broken(self.format, self.data):
            rgb = _rgb(self.image, rows)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                band = rgb(self.image.crop((0, top, width, bottom)))
                turned = band if turn is None else band.transpose(turn)
                first = height - bottom if turn in _LAST_ROW_FIRST else top
                yield Band((0, first) if turn in _QUARTERS else (first, 0), np.asarray(turned))


def decode_photo(data: bytes, max_pixels: int) -> Photo:
    """Decode an image's first frame as a viewer shows it: upright, transparent parts white.

    Runs in this process, which a broken file may crash; a worker uses `sandbox` instead.
    Raises InvalidImage, as open_picture and Picture.decoded do.
    """
    with open_picture(data, max_pixels) as picture:
        size_wh, bands = picture.decoded()
        pixels = np.empty((size_wh[1], size_wh[0], 3), np.uint8)
        for band in bands:
            top, left = band.top_left
            height, width = band.pixels.shape[:2]
            pixels[top : top + height, left : left + width] = band.pixels
    return Photo(pixels, size_wh, picture.format)


@contextmanager
def open_picture(data: bytes, max_pixels: int) -> Iterator[Picture]:
    """Read an image's header; raises InvalidImage as `file_checks.open_image` does."""
    with open_image(data, max_pixels) as (image, file_format):
        yield Picture(image, file_format, data)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose for the EXIF orientation; unreadable metadata is ignored, as in viewers."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODER_ERRORS:
        return None


def _rgb(image: Image.Image, rows: int) -> Callable[[Image.Image], Image.Image]:
    """Return a function that converts a band of an image, of any mode, to 8-bit RGB.

    Transparent pixels are laid on white.  Many viewers do so, and transformers' image processors; its
    pipeline drops alpha first, which reveals colours that nobody was meant to see.
    """
    if image.mode.startswith("I") or image.mode == "F":
        low, high = _black_and_white(image, rows)
        return lambda band: _eight_bits(band, low, high).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        return _on_white
    return lambda band: band.convert("RGB")


def _on_white(band: Image.Image) -> Image.Image:
    seen = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _black_and_white(image: Image.Image, rows: int) -> tuple[float, float]:
    """Choose which values of a grey image deeper than 8 bits are black and white.

    16-bit files are scaled by their depth.  32-bit and float files define no white: they are taken as 8-bit,
    16-bit or 0..1 if all values fit there, else stretched from their lowest value to their highest.
    """
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    bands = (
        _deep(image.crop((0, top, image.width, min(top + rows, image.height)))) for top in range(0, image.height, rows)
    )
    ends = [(float(values.min()), float(values.max())) for values in bands]
    low, top = min(low for low, _ in ends), max(high for _, high in ends)
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    high = next((white for white in whites if low >= 0 and top <= white), top)
    return (0.0 if high in whites and low >= 0 else low), high


def _eight_bits(band: Image.Image, low: float, high: float) -> Image.Image:
    """Scale deep grey values to 0..255; Pillow's own conversion would clip them."""
    return Image.fromarray(np.rint((_deep(band) - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8))


def _deep(band: Image.Image) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
