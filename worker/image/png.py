"""PNG's chunks: those that pixels need, and nothing else.  Source: PNG (W3C, third edition), 5.3, 5.4 and 13.1."""

from __future__ import annotations

import struct

from maskfleet.jobs.image_types import png_chunk_is_intact

_SIGNATURE_BYTES = 8
#: Of the ancillary chunks, those that change what is seen here: transparency and orientation.
_SEEN = (b"tRNS", b"eXIf")


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without its ancillary chunks, but for transparency and orientation with a right checksum.

    A profile, a text or a time that is huge, damaged or a bomb is no reason to refuse pixels that are whole.
    Of an animation the default image remains.
    """
    kept: list[bytes | memoryview] = [data[:_SIGNATURE_BYTES]]
    at = _SIGNATURE_BYTES
    view = memoryview(data)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        is_critical = not kind[0] & 0x20
        if is_critical or (kind in _SEEN and png_chunk_is_intact(view[at:end])):
            kept.append(view[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(kept)


def is_deep(data: bytes) -> bool:
    """Return whether a PNG has 16 bits per sample."""
    return data[12:16] == b"IHDR" and data[24:25] == b"\x10"


def exif_of(data: bytes) -> bytes:
    """Return the EXIF block of what `without_metadata` returned; empty without one."""
    exif, at = b"", _SIGNATURE_BYTES
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            exif = data[at + 8 : at + 8 + length]
        at += 12 + length
    return exif
