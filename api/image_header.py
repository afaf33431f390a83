"""An image's header, read without decoding anything.

Only what is certain is rejected here.  When a header is unusual, the size stays unknown and the worker,
which decodes the image, decides; it uses the same codes.

Sources: PNG (W3C) 5.3 and 11.3; JPEG, ITU T.81 annex B; TIFF 6.0 section 2 and the BigTIFF design; GIF89a;
WebP, RFC 9649; Exif 2.32 section 4.6.4.  Bitmaps: BITMAPCOREHEADER, BITMAPINFOHEADER.

An orientation in XMP alone turns nothing: browsers go by EXIF.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from maskfleet.jobs.errors import InvalidImage
from maskfleet.jobs.image_types import (
    SIGNATURES,
    Size,
    check_not_empty,
    check_size,
    image_format,
    media_type,
    not_an_image,
    png_chunk_is_intact,
    png_size_wh,
    webp_size_wh,
)

#: Tags of TIFF and Exif; NewSubfileType and SubfileType say whether an image is a reduced version of another one.
_ORIENTATION, _WIDTH, _HEIGHT, _SUBFILE_TYPES = 0x0112, 0x0100, 0x0101, (0x00FE, 0x00FF)
#: A value that decoders read differently, or that may be elsewhere in the file: left for the worker to find.
_OPEN = -1
#: Orientations that turn the image by 90°.
_TURNED = (5, 6, 7, 8)
#: The struct formats of tags' values, by type: SHORT, LONG, SSHORT, SLONG, IFD, LONG8.
_SHAPES = {3: "H", 4: "I", 8: "h", 9: "i", 13: "I", 16: "Q"}
#: A flag of the VP8X chunk.  Source: RFC 9649, section 2.7.
_WEBP_HAS_EXIF = 0x08
#: Markers SOS and EOI.  Source: ITU T.81, table B.1.
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
#: No real image's directory has more entries than this; at most three of them matter here.
_MAX_TAGS = 4096


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """size_wh: of the image as a viewer shows it, EXIF orientation applied; None when the header leaves it open."""

    content_type: str
    size_wh: Size | None


def read_header(data: bytes, max_pixels: int) -> ImageHeader:
    """Read an image's header.

    Raises InvalidImage: ``image_empty``, ``not_an_image``, ``image_too_large``, ``image_truncated``.
    """
    check_not_empty(data)
    file_format = image_format(data)
    if file_format is None:
        raise not_an_image(data)
    content_type = media_type(file_format)
    try:
        stored, orientation = _READERS[file_format](data)
    except (IndexError, struct.error) as error:
        raise InvalidImage("image_truncated", "The file ends inside its header. Was it uploaded completely?") from error
    if stored is None:
        return ImageHeader(content_type, None)
    check_size(stored, max_pixels)
    width, height = stored
    if orientation == _OPEN or width == 0 or height == 0:
        return ImageHeader(content_type, None)
    return ImageHeader(content_type, (height, width) if orientation in _TURNED else (width, height))


# Each reader returns the size as stored, None when the header leaves it open, and the orientation, 1 to 8 or _OPEN.

_Reading = tuple[Size | None, int]


def _png(data: bytes) -> _Reading:
    size = png_size_wh(data)
    orientation, at = 0, 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            break
        if kind == b"eXIf" and png_chunk_is_intact(memoryview(data)[at : at + 12 + length]):
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
    return size, _OPEN if data.find(b"eXIf", at) >= 0 else orientation or 1


def _jpeg(data: bytes) -> _Reading:
    size, exif, marker = None, 0, 0
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and data.startswith(b"Exif\x00\x00", start):
            exif = exif or _exif_orientation(data[start:end])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, start + 1)
            size = width, height
    return size, (exif or 1) if marker == _START_OF_SCAN else _OPEN


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each segment's marker and extent; the last is the first scan's header."""
    at = 2
    while data[at] == 0xFF:  # else no marker where one belongs; decoders differ on what to do
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:  # these have no length
            continue
        (length,) = struct.unpack_from(">H", data, at)
        yield marker, at + 2, at + length
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return
        at += length


def _webp(data: bytes) -> _Reading:
    size = webp_size_wh(data)
    if size is None:
        return (None, _OPEN) if len(data) >= 16 else _cut_short()
    return size, _webp_orientation(data) if data[12:16] == b"VP8X" else 1


def _webp_orientation(data: bytes) -> int:
    exif, at = 0, 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            exif = exif or _exif_orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return _OPEN if exif and not data[20] & _WEBP_HAS_EXIF else exif or 1


def _tiff(data: bytes) -> _Reading:
    tags, is_whole = _tiff_tags(data)
    if not is_whole and not {_WIDTH, _HEIGHT} <= tags.keys():
        return _cut_short()
    width, height = tags.get(_WIDTH, _OPEN), tags.get(_HEIGHT, _OPEN)
    # A thumbnail before the picture, as cameras write it: left to the worker to find.
    if _OPEN in (width, height) or any(tags.get(tag, 0) for tag in _SUBFILE_TYPES):
        return None, _OPEN
    return (width, height), tags.get(_ORIENTATION, 1) if is_whole else _OPEN


def _bmp(data: bytes) -> _Reading:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return (abs(width), abs(height)), 1


def _gif(data: bytes) -> _Reading:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at] == 0x21:  # extensions before the first frame
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    if data[at] != 0x2C:
        return (width, height), _OPEN
    # A first frame that extends beyond the logical screen makes the image larger.
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    return (max(width, left + frame_width), max(height, top + frame_height)), 1


_READERS = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "TIFF": _tiff,
    "BMP": _bmp,
    "GIF": _gif,
}


def _tiff_tags(data: bytes) -> tuple[dict[int, int], bool]:
    """Read width, height, orientation and the kind of image from the first directory of a TIFF or BigTIFF.

    Also return whether the directory is complete; decoders use what there is.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    if at >= len(data):  # BigTIFF's numbers may be larger than struct's
        _cut_short()
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    head, entry, value_at = (order + "HHQ", 20, 12) if big else (order + "HHI", 12, 8)
    tags: dict[int, int] = {}
    for start in range(at, at + entry * min(count, _MAX_TAGS), entry):
        if start + entry > len(data):
            return tags, False
        tag, kind, values = struct.unpack_from(head, data, start)
        if tag in tags or values != 1:
            tags[tag] = _OPEN
        elif tag in (_WIDTH, _HEIGHT, _ORIENTATION, *_SUBFILE_TYPES) and kind in _SHAPES:
            (tags[tag],) = struct.unpack_from(order + _SHAPES[kind], data, start + value_at)
    return tags, True


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block; 0 for none, or an unreadable one."""
    tiff = re.sub(rb"^(?:Exif\x00\x00){1,2}", b"", exif)
    if not tiff.startswith(SIGNATURES["TIFF"]):
        return 0
    try:
        return _tiff_tags(tiff)[0].get(_ORIENTATION, 0)
    except (IndexError, struct.error):
        return 0


def _cut_short() -> _Reading:
    raise IndexError
