"""Small images in every format, for tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

HTML_PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Please log in.</body></html>"


def a_picture(
    size_wh: tuple[int, int] = (64, 48),
    file_format: str = "JPEG",
    *,
    orientation: int | None = None,
    **options: Any,  # Any: what the format's writer in Pillow takes
) -> bytes:
    """Draw a plain image and encode it in the format."""
    image = Image.new("RGB", size_wh, (90, 140, 60))
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def a_decompression_bomb(size_wh: tuple[int, int] = (50_000, 50_000)) -> bytes:
    """Return a PNG of a few bytes whose header declares a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *size_wh, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
