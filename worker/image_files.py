"""A file's bytes and what they claim to be: an image whose header can be read and is small enough, or a refusal."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from jobs.errors import InvalidImage
from jobs.spec import IMAGE_FORMATS

#: What Pillow's decoders raise on files that are broken, as found by the fuzzing tests.
DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

#: The first bytes of each accepted format, from its specification.
_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "TIFF": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
}


@contextmanager
def open_image(data: bytes, max_pixels: int) -> Iterator[tuple[Image.Image, str]]:
    """Read a file's header, and compare its size with max_pixels.  Gives the image and its format.

    Raises InvalidImage: ``image_empty``, ``not_an_image``, ``image_too_large``, ``image_truncated``,
    ``image_corrupt``, ``image_needs_too_much_memory``.
    """
    if not data:
        raise InvalidImage("image_empty", "The image has no bytes. Was the file uploaded completely?")
    # Pillow's own limit is one number for the whole process; max_pixels stands in its place here.
    Image.MAX_IMAGE_PIXELS = None
    _check_size(_declared_size_wh(data), max_pixels)
    with _quiet():
        image = _open(data)
    with image:
        _check_size(image.size, max_pixels)
        # A JPEG with a second picture, as some telephones write, is called MPO by Pillow.
        yield image, "JPEG" if image.format == "MPO" else str(image.format)


@contextmanager
def refused_when_broken(file_format: str, data: bytes) -> Iterator[None]:
    """Say what is wrong with a file, in place of what a decoder raises over it."""
    with _quiet():
        try:
            yield
        except DECODER_ERRORS as error:
            raise _broken(file_format, data, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata, not for an operator's log
        yield


def _open(data: bytes) -> Image.Image:
    """Read the header."""
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        file_format = _signed_as(data)
        if file_format is None:
            raise InvalidImage("not_an_image", _what_it_is(data)) from error
        raise _broken(file_format, data, error) from error
    except DECODER_ERRORS as error:
        raise _broken(_signed_as(data) or "image", data, error) from error


def _signed_as(data: bytes) -> str | None:
    for file_format, signatures in _SIGNATURES.items():
        if data.startswith(signatures) and (file_format != "WEBP" or data[8:12] in (b"WEBP", b"")):
            return file_format
    return None


def _what_it_is(data: bytes) -> str:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    accepted = f"Send one of {', '.join(IMAGE_FORMATS)}."
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")) or b"<html" in start:
        return (
            "The bytes look like HTML, not like an image: perhaps a log-in or error page in the image's place. "
            + accepted
        )
    return "The bytes are not an image of a format that is accepted. " + accepted


def _declared_size_wh(data: bytes) -> tuple[int, int] | None:
    """The size that a PNG or WebP header declares, read without Pillow.

    Pillow does not open a PNG without pixels, and makes WebP's canvas while it opens the file: too late for
    a file that declares a huge one.  None for the other formats and for short headers.
    """
    if data.startswith(_SIGNATURES["PNG"]) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data[:4] == b"RIFF" and len(data) >= 30:
        kind = data[12:16]
        if kind == b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        if kind == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if kind == b"VP8 ":
            width, height = struct.unpack("<HH", data[26:30])
            return width & 0x3FFF, height & 0x3FFF
    return None


def _check_size(size_wh: tuple[int, int] | None, max_pixels: int) -> None:
    if size_wh is None:
        return
    width, height = size_wh
    if width * height > max_pixels:
        raise InvalidImage(
            "image_too_large",
            f"The image has {width}×{height} = {width * height:,} pixels; at most {max_pixels:,} are accepted. "
            "Scale it down.",
        )


def _broken(file_format: str, data: bytes, error: BaseException) -> InvalidImage:
    # -9 is Pillow's own number for it, which its reader of TIFFs does not put into words.
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or str(error) == "decoder error -9":
        return InvalidImage(
            "image_needs_too_much_memory", f"The {file_format} file needs far more memory than its picture has pixels."
        )
    if "truncated" in str(error).lower() or isinstance(error, EOFError) or _ends_early(file_format, data):
        return InvalidImage("image_truncated", f"The {file_format} file ends before its picture does. Upload it again.")
    return InvalidImage("image_corrupt", f"The {file_format} file is damaged and cannot be decoded.")


def _ends_early(file_format: str, data: bytes) -> bool:
    """Whether a file that could not be decoded lacks its end, by its format's own mark."""
    if len(data) < 30:
        return True
    if file_format == "WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if file_format == "PNG":
        return b"IEND" not in data[-16:]
    if file_format == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    return False
