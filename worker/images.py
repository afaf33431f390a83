"""A file's bytes, made into the picture that a viewer would show, or refused with the reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from jobs.errors import InvalidImage
from jobs.spec import IMAGE_FORMATS

#: What Pillow's decoders raise on files that are broken, as found by the fuzzing test of this module.
_DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
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


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded image.

    pixels: (H, W, 3) RGB, upright.  size_wh: of these pixels.  format: what the file was, one of IMAGE_FORMATS.
    """

    pixels: npt.NDArray[np.uint8]
    size_wh: tuple[int, int]
    format: str


def decode_photo(data: bytes, max_pixels: int) -> Photo:
    """Decode an image's first frame as a viewer shows it: upright, transparent parts white.

    The size in the header is compared with max_pixels before anything is decoded.
    Raises InvalidImage: ``image_empty``, ``not_an_image``, ``image_too_large``, ``image_truncated``,
    ``image_corrupt``.
    """
    if not data:
        raise InvalidImage("image_empty", "The image has no bytes. Was the file uploaded completely?")
    # Pillow's own limit is one number for the whole process; max_pixels stands in its place here.
    Image.MAX_IMAGE_PIXELS = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata, not for an operator's log
        _check_size(_declared_size_wh(data), max_pixels)
        with _open(data) as image:
            _check_size(image.size, max_pixels)
            # A JPEG with a second picture, as some telephones write, is called MPO by Pillow.
            file_format = "JPEG" if image.format == "MPO" else str(image.format)
            try:
                image.load()
                pixels = np.array(_rgb(_upright(image)))
            except _DECODER_ERRORS as error:
                raise _broken(file_format, data, error) from error
    height, width = pixels.shape[:2]
    return Photo(pixels, (width, height), file_format)


def _open(data: bytes) -> Image.Image:
    """Read the header."""
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        file_format = _signed_as(data)
        if file_format is None:
            raise InvalidImage("not_an_image", _what_it_is(data)) from error
        raise _broken(file_format, data, error) from error
    except _DECODER_ERRORS as error:
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


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation.  Metadata that cannot be read is passed over, as viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB of 8 bits.

    Transparent pixels are laid on white.  Many viewers do so, and transformers' image processors; its
    pipeline drops alpha first, and shows colours that nobody has ever seen.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale deep grey values to 0..255; Pillow's own conversion clips them.

    16-bit files are scaled by their depth.  32-bit and floating files name no white: they are taken as 8-bit,
    16-bit or 0..1 when all values fit there, else stretched from their lowest value to their highest.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, top = float(values.min()), float(values.max())
        high = next((white for white in whites if low >= 0 and top <= white), top)
        low = 0.0 if high in whites and low >= 0 else low
    return Image.fromarray(np.rint((values - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8))


def _broken(file_format: str, data: bytes, error: BaseException) -> InvalidImage:
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
