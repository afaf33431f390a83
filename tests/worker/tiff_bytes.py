"""TIFF files byte by byte: also those that no library writes, because their tags are rare, or lie."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

SHORT, LONG = 3, 4
#: A directory: for each tag its type and values.
Tags = Mapping[int, tuple[int, Sequence[int]]]
_SHAPES = {SHORT: "H", LONG: "I"}


def tiff_bytes(directories: Sequence[tuple[Tags, Sequence[bytes]]], *, order: str = "<", below: int = 0) -> bytes:
    """Write a TIFF.  Each directory comes with its strips.  below: how many of the last are SubIFDs of the first."""
    body = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    offsets: list[int] = []
    links: list[int] = []
    subifds_at = 0
    for number, (given, strips) in enumerate(directories):
        starts = [_append(body, strip) for strip in strips]
        tags = dict(given) | {273: (LONG, starts), 279: (LONG, [len(strip) for strip in strips])}
        if number == 0 and below:
            tags[330] = (LONG, [0] * below)
        entries = bytearray()
        for tag, (kind, values) in sorted(tags.items()):
            shape = _SHAPES[kind]
            packed = struct.pack(f"{order}{len(values)}{shape}", *values)
            at = _append(body, packed) if len(packed) > 4 else None
            if tag == 330:
                subifds_at = at or 0
            value = packed.ljust(4, b"\0") if at is None else struct.pack(order + "I", at)
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + value
        offsets.append(_append(body, struct.pack(order + "H", len(tags)) + entries + bytes(4)))
        if number == 0 and below == 1:
            subifds_at = offsets[0] + 2 + 12 * sorted(tags).index(330) + 8
        links.append(len(body) - 4)
    chain, children = offsets[: len(offsets) - below], offsets[len(offsets) - below :]
    struct.pack_into(order + "I", body, 4, chain[0])
    for link, following in zip(links, chain[1:], strict=False):
        struct.pack_into(order + "I", body, link, following)
    for number, child in enumerate(children):
        struct.pack_into(order + "I", body, subifds_at + 4 * number, child)
    return bytes(body)


def picture_tags(size_wh: tuple[int, int], photometric: int, bits: Sequence[int], **more: int) -> Tags:
    """Return the tags of an uncompressed picture in one strip; more: t266=2 for tag 266."""
    tags = {
        256: (LONG, [size_wh[0]]),
        257: (LONG, [size_wh[1]]),
        258: (SHORT, list(bits)),
        259: (SHORT, [1]),
        262: (SHORT, [photometric]),
        277: (SHORT, [len(bits)]),
    }
    return tags | {int(name[1:]): (SHORT if value < 2**16 else LONG, [value]) for name, value in more.items()}


def packed(samples: npt.NDArray[np.int64], bits: int) -> bytes:
    """Pack samples (rows, n) of any depth, the highest bit first; each row begins with a byte."""
    rows = []
    for row in samples.tolist():
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)


def _append(body: bytearray, content: bytes) -> int:
    body += bytes(len(body) % 2)
    at = len(body)
    body += content
    return at
