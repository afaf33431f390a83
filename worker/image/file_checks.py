"""Check a file before it is decoded: its format is known, its header readable, its size within the limit."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from maskfleet.jobs.errors import InvalidImage
from maskfleet.jobs.image_types import (
    IMAGE_FORMATS,
    Size,
    check_size,
    image_format,
    not_an_image,
    png_size_wh,
    webp_size_wh,
)
from maskfleet.worker.image.rare_kinds import unsupported_kind

#: What decoders raise on broken files, as found by the fuzzing tests.
DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
#: TIFF is read by `tiff`: Pillow knows the combinations of tags that it has a mode for.
_PILLOWS = tuple(name for name in IMAGE_FORMATS if name != "TIFF")


@contextmanager
def open_image(data: bytes, max_pixels: int) -> Iterator[tuple[Image.Image, str]]:
    """Let Pillow read a file's header, and check its size against max_pixels.  Yields the image and its format.

    Raises InvalidImage: ``not_an_image``, ``image_too_large``, ``image_truncated``, ``image_corrupt``,
    ``image_needs_too_much_memory``, ``image_unsupported``.
    """
    # Pillow's own limit is global to the process; max_pixels replaces it here.
    Image.MAX_IMAGE_PIXELS = None
    if declared := _declared_size_wh(data):
        check_size(declared, max_pixels)
    with _quiet():
        image = _open(data)
    with image:
        check_size(image.size, max_pixels)
        # Pillow calls a JPEG with a second picture, as some phones write, MPO.
        yield image, "JPEG" if image.format == "MPO" else str(image.format)


@contextmanager
def refused_when_broken(file_format: str, data: bytes) -> Iterator[None]:
    """Raise InvalidImage with what is wrong with a file, in place of the decoder's own error."""
    with _quiet():
        try:
            yield
        except DECODER_ERRORS as error:
            raise _broken(file_format, data, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    # About odd metadata, of no use in an operator's log; tifffile logs what others warn of.
    log = logging.getLogger("tifffile")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled


def _open(data: bytes) -> Image.Image:
    """Read the header."""
    try:
        return Image.open(io.BytesIO(data), formats=_PILLOWS)
    except UnidentifiedImageError as error:
        file_format = image_format(data)
        if file_format is None:
            raise not_an_image(data) from error
        raise _broken(file_format, data, error) from error
    except DECODER_ERRORS as error:
        raise _broken(image_format(data) or "image", data, error) from error


def _declared_size_wh(data: bytes) -> Size | None:
    """Return the size that a PNG or WebP header declares, read without Pillow.

    Pillow does not open a PNG without pixels, and allocates WebP's canvas while opening the file: too late for
    a file that declares a huge one.  None for the other formats and for short headers.
    """
    try:
        match image_format(data):
            case "PNG":
                return png_size_wh(data)
            case "WEBP":
                return webp_size_wh(data)
    except (IndexError, struct.error):
        pass
    return None


def _broken(file_format: str, data: bytes, error: BaseException) -> InvalidImage:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "insufficient memory" in text:
        return InvalidImage(
            "image_needs_too_much_memory",
            f"Decoding the {file_format} file needs far more memory than its pixels do. Re-save the image.",
        )
    if kind := unsupported_kind(file_format, data):
        return InvalidImage(
            "image_unsupported",
            f"The file is {kind}, which is not supported. Save it as PNG or as an ordinary JPEG.",
        )
    if "truncated" in text or isinstance(error, EOFError) or _ends_early(file_format, data):
        return InvalidImage("image_truncated", f"The {file_format} file is truncated. Upload it again.")
    return InvalidImage("image_corrupt", f"The {file_format} file is damaged and cannot be decoded.")


def _ends_early(file_format: str, data: bytes) -> bool:
    """Return True if a file that could not be decoded lacks its format's end marker."""
    if len(data) < 30:
        return True
    if file_format == "WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if file_format == "PNG":
        return b"IEND" not in data[-16:]
    if file_format == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    return False
