"""A file's bytes, made into the picture that a viewer would show, or refused with the reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

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
#: What each EXIF orientation but the first wants done.  Source: Exif 2.32, 4.6.4.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Those that make rows of columns, and those after which the last stored row is the first row or column.
_QUARTERS = {_TURNS[number] for number in (5, 6, 7, 8)}
_LAST_ROW_FIRST = {_TURNS[number] for number in (3, 4, 6, 7)}
#: A band has about so many pixels: few beside an image, many beside what each band costs.
_BAND_PIXELS = 2**20


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded image.

    pixels: (H, W, 3) RGB, upright.  size_wh: of these pixels.  format: what the file was, one of IMAGE_FORMATS.
    """

    pixels: npt.NDArray[np.uint8]
    size_wh: tuple[int, int]
    format: str


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the upright picture.  pixels: (h, w, 3) RGB, of which the first is at ``top_left``."""

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
        """Decode the first frame; give its upright size (W, H), and its parts until they cover it.

        Beside Pillow's own copy there is one band at a time.
        Raises InvalidImage: ``image_truncated``, ``image_corrupt``, ``image_needs_too_much_memory``.
        """
        with self._refusals():
            self.image.load()
            turn = _turn(self.image)
        width, height = self.image.size
        return (height, width) if turn in _QUARTERS else (width, height), self._bands(turn)

    def _bands(self, turn: Image.Transpose | None) -> Iterator[Band]:
        width, height = self.image.size
        rows = max(1, _BAND_PIXELS // width)
        with self._refusals():
            rgb = _rgb(self.image, rows)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                band = rgb(self.image.crop((0, top, width, bottom)))
                turned = band if turn is None else band.transpose(turn)
                first = height - bottom if turn in _LAST_ROW_FIRST else top
                yield Band((0, first) if turn in _QUARTERS else (first, 0), np.asarray(turned))

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        with _quiet():
            try:
                yield
            except _DECODER_ERRORS as error:
                raise _broken(self.format, self.data, error) from error


def decode_photo(data: bytes, max_pixels: int) -> Photo:
    """Decode an image's first frame as a viewer shows it: upright, transparent parts white.

    In this process, which a broken file may end; a worker asks `worker.sandbox` instead.
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
    """Read an image's header, and compare its size with max_pixels.

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
        yield Picture(image, "JPEG" if image.format == "MPO" else str(image.format), data)


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


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the EXIF orientation wants the picture turned; metadata that cannot be read is passed over, as viewers do."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DECODER_ERRORS:
        return None


def _rgb(image: Image.Image, rows: int) -> Callable[[Image.Image], Image.Image]:
    """Give what converts a band of an image, of any mode, to RGB of 8 bits.

    Transparent pixels are laid on white.  Many viewers do so, and transformers' image processors; its
    pipeline drops alpha first, and shows colours that nobody has ever seen.
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
    """Choose the values of a deep grey image that are black and white.

    16-bit files are scaled by their depth.  32-bit and floating files name no white: they are taken as 8-bit,
    16-bit or 0..1 when all values fit there, else stretched from their lowest value to their highest.
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
    """Scale deep grey values to 0..255; Pillow's own conversion clips them."""
    return Image.fromarray(np.rint((_deep(band) - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8))


def _deep(band: Image.Image) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


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
