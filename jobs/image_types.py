"""Which images are accepted, by their first bytes, and the errors that those alone can show.

The API, the worker and the client all detect formats with this table; the API and the worker share its messages.

Sources: the formats' specifications; PNG (W3C) 11.2.1; WebP, RFC 9649 sections 2.5 to 2.7.
"""

from __future__ import annotations

import struct
import zlib

from maskfleet.jobs.errors import InvalidImage

Size = tuple[int, int]

#: The first bytes of each accepted format, by Pillow's name for it.
SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    # Pillow also reads the last two, with the 42 in the wrong byte order.
    "TIFF": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"II\x00*", b"MM*\x00"),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
}
#: What else is often sent, by its first bytes; of ISO media by its brand, after four bytes of length.
_OTHERS = (
    (b"ftypavi", "AVIF"),
    *((b"ftyp" + brand, "HEIC, as phones write it") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (b"ftypcrx", "a camera raw (CR3)"),
    (b"IIRO", "a camera raw (ORF)"),
    (b"IIU\0", "a camera raw (RW2)"),
    (b"FUJIFILM", "a camera raw (RAF)"),
    (b"\xff\x0a", "JPEG XL"),
    (b"JXL ", "JPEG XL"),
    (b"jP  ", "JPEG 2000"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "compressed with gzip"),
)
#: The image formats that are accepted.
IMAGE_FORMATS = tuple(SIGNATURES)


def image_format(data: bytes) -> str | None:
    """Return a file's format, one of IMAGE_FORMATS, by its first bytes; None for any other."""
    for file_format, signatures in SIGNATURES.items():
        # RIFF is also the container of other media; a truncated file may end before it says which.
        if data.startswith(signatures) and (file_format != "WEBP" or data[8:12] in (b"WEBP", b"")):
            return file_format
    return None


def media_type(file_format: str) -> str:
    """Return a format's media type."""
    return f"image/{file_format.lower()}"


def check_not_empty(data: bytes) -> None:
    """Raise InvalidImage (``image_empty``) for an empty file."""
    if not data:
        raise InvalidImage("image_empty", "The image file is empty. Was it uploaded completely?")


def check_size(size_wh: Size, max_pixels: int) -> None:
    """Raise InvalidImage (``image_too_large``) above ``max_pixels``."""
    width, height = size_wh
    if width * height > max_pixels:
        raise InvalidImage(
            "image_too_large",
            f"The image has {width}×{height} = {width * height:,} pixels; at most {max_pixels:,} are accepted. "
            "Scale it down.",
        )


def not_an_image(data: bytes) -> InvalidImage:
    """Return the error for a file in none of IMAGE_FORMATS."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_html = start.startswith((b"<head", b"<body", b"<!--")) or b"<html" in start or b"<!doctype html" in start
    other = next((name for mark, name in _OTHERS if data[4:12].startswith(mark) or data.startswith(mark)), None)
    if is_html:
        found = "The file is HTML, perhaps a login or error page instead of the image."
    elif other:
        found = f"The file is {other}, which is not an accepted format."
    else:
        found = "The file is not an image in an accepted format."
    return InvalidImage("not_an_image", f"{found} Send one of {', '.join(IMAGE_FORMATS)}.")


def png_size_wh(data: bytes) -> Size:
    """Return the size that a PNG declares.  Raises struct.error when the file ends before it."""
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def png_chunk_is_intact(chunk: memoryview) -> bool:
    """Return whether a whole chunk, from its length on, has the right checksum."""
    return len(chunk) >= 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def webp_size_wh(data: bytes) -> Size | None:
    """Return the size that a WebP file declares; None for an unknown kind.

    Raises IndexError or struct.error when the file ends before it.
    """
    kind = data[12:16]
    if kind == b"VP8X":
        return _uint24(data, 24) + 1, _uint24(data, 27) + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _uint24(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16
