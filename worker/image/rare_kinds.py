"""Kinds of the accepted formats that no decoder here reads, by their headers: whole files, not damaged ones.

Asked only when a file could not be decoded.  Sources: JPEG, ITU T.81 annex B; JPEG-LS, ITU T.87; BITMAPINFOHEADER.
"""

from __future__ import annotations

import struct

#: What a frame header of JPEG says by its marker, apart from those that are decoded.
_JPEG_PROCESSES = {
    0xC3: "lossless JPEG",
    0xC5: "a hierarchical JPEG",
    0xC6: "a hierarchical JPEG",
    0xC7: "a hierarchical JPEG",
    0xCB: "lossless JPEG",
    0xCD: "a hierarchical JPEG",
    0xCE: "a hierarchical JPEG",
    0xCF: "a hierarchical JPEG",
    0xF7: "JPEG-LS",
}
_JPEG_FRAMES = (*_JPEG_PROCESSES, 0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
#: The compressions of a bitmap that are not decoded.
_BMP_COMPRESSIONS = {4: "a JPEG inside a bitmap", 5: "a PNG inside a bitmap"}


def unsupported_kind(file_format: str, data: bytes) -> str | None:
    """Return what a file is, in words, if its header says that it is of a kind that is not decoded."""
    try:
        match file_format:
            case "JPEG":
                return _jpeg(data)
            case "BMP":
                return _bmp(data)
            case "PNG":
                return "a PNG for iOS alone (CgBI)" if data[12:16] == b"CgBI" else None
    except (IndexError, struct.error):
        pass
    return None


def _jpeg(data: bytes) -> str | None:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _JPEG_FRAMES:
            bits, components = data[at + 4], data[at + 9]
            if kind := _JPEG_PROCESSES.get(marker):
                return kind
            if bits in (12, 16):
                return f"a JPEG of {bits} bits"
            return f"a JPEG with {components} components" if components in (2, 5, 6, 7, 8) else None
        if marker == 0xDA:
            return None
        at += 2 + length
    return None


def _bmp(data: bytes) -> str | None:
    (header_size,) = struct.unpack_from("<I", data, 14)
    return _BMP_COMPRESSIONS.get(struct.unpack_from("<I", data, 30)[0]) if header_size >= 40 else None
