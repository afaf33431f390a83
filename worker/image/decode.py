"""Decode an image file as a viewer would show it: upright, in 8-bit colours, band by band."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maskfleet.jobs.image_types import check_not_empty, image_format
from maskfleet.worker.image.file_checks import open_image
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.image.picture import Picture
from maskfleet.worker.image.pillow_picture import PillowPicture
from maskfleet.worker.image.png import is_deep, without_metadata
from maskfleet.worker.image.values import Pixels, ValueRange


class AnyPhoto(Protocol):
    """A Photo, or an image of which more is known than was decoded: its pixels may take a while."""

    @property
    def pixels(self) -> Pixels: ...

    @property
    def size_wh(self) -> tuple[int, int]: ...

    @property
    def values(self) -> ValueRange | None: ...

    @property
    def georeference(self) -> Georeference | None: ...


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded image.

    pixels: (H, W, 3) RGB, upright.  size_wh: of these pixels.  format: the file's, one of IMAGE_FORMATS.  values: which
    of the file's are shown as black and white; None for a file of at most 8 bits.  georeference: where it lies on a
    map; None for a file that does not say.
    """

    pixels: Pixels
    size_wh: tuple[int, int]
    format: str
    values: ValueRange | None = None
    georeference: Georeference | None = None


def decode_photo(data: bytes, max_pixels: int) -> Photo:
    """Decode an image's first frame as a viewer shows it: upright, transparent parts white.

    Runs in this process, which a broken file may crash; a worker uses `sandbox` instead.
    Raises InvalidImage, as open_picture and Picture.decoded do.
    """
    with open_picture(data, max_pixels) as picture:
        decoded = picture.decoded()
        pixels = np.empty((decoded.size_wh[1], decoded.size_wh[0], 3), np.uint8)
        for band in decoded.bands:
            top, left = band.top_left
            height, width = band.pixels.shape[:2]
            pixels[top : top + height, left : left + width] = band.pixels
    return Photo(pixels, decoded.size_wh, picture.format, decoded.values, decoded.georeference)


@contextmanager
def open_picture(data: bytes, max_pixels: int) -> Iterator[Picture]:
    """Read an image's header and check its size against max_pixels.

    Raises InvalidImage: ``image_empty``, ``not_an_image``, ``image_too_large``, ``image_truncated``, ``image_corrupt``,
    ``image_needs_too_much_memory``, ``image_unsupported``.
    """
    check_not_empty(data)
    file_format = image_format(data)
    # The libraries for deep pixels are imported for files that need them; most do not, and a process starts sooner.
    if file_format == "TIFF":
        from maskfleet.worker.image.tiff import open_tiff

        with open_tiff(data, max_pixels) as tiff:
            yield tiff
        return
    if file_format == "PNG":
        data = without_metadata(data)
        if is_deep(data):
            from maskfleet.worker.image.deep_png import open_deep_png

            yield open_deep_png(data, max_pixels)
            return
    with open_image(data, max_pixels) as (image, name):
        yield PillowPicture(image, name, data)
