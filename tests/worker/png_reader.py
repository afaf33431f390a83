"""A strict reader of PNG files: every chunk, checksum and filter byte is looked at, as `pngcheck` does."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ReadPng:
    """pixels: (H, W) or (H, W, 3).  filters: the type of each row."""

    bit_depth: int
    colour_type: int
    pixels: npt.NDArray[Any]
    filters: list[int]


def read_png(data: bytes) -> ReadPng:
    """Read a greyscale or RGB file; whatever is not as the specification says fails."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert len(body) == length
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(name + body),)
        chunks.append((name, body))
        at += 12 + length
    assert at == len(data)
    assert [name for name, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, bit_depth, colour_type, compression, filtering, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (compression, filtering, interlace, chunks[2][1]) == (0, 0, 0, b"")
    channels = {0: 1, 2: 3}[colour_type]
    unpacking = zlib.decompressobj()
    raw = unpacking.decompress(chunks[1][1])
    assert unpacking.eof  # with a valid Adler-32
    assert not unpacking.unused_data
    row_bytes = (width * bit_depth * channels + 7) // 8
    assert len(raw) == height * (1 + row_bytes)
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + row_bytes)
    lines = _unfiltered(rows, max(1, bit_depth * channels // 8))
    if bit_depth == 1:
        padding = np.unpackbits(lines, axis=1)[:, width:]
        assert not padding.any()
        pixels: npt.NDArray[Any] = np.unpackbits(lines, axis=1)[:, :width].astype(bool)
    elif bit_depth == 16:
        pixels = lines.view(">u2").astype(np.uint16)
    else:
        pixels = lines.reshape(height, width, channels)
    return ReadPng(bit_depth, colour_type, pixels, rows[:, 0].tolist())


def _unfiltered(rows: npt.NDArray[np.uint8], step: int) -> npt.NDArray[np.uint8]:
    """Undo the filters.  step: the bytes from a pixel to its left neighbour.  Source: the specification, 9.2."""
    out: list[list[int]] = []
    above = [0] * (rows.shape[1] - 1)
    for kind, *values in rows.tolist():
        line: list[int] = []
        for x, value in enumerate(values):
            left, corner = (line[x - step], above[x - step]) if x >= step else (0, 0)
            predicted = [0, left, above[x], (left + above[x]) // 2, _paeth(left, above[x], corner)][kind]
            line.append((value + predicted) % 256)
        out.append(line)
        above = line
    return np.array(out, np.uint8).reshape(len(rows), rows.shape[1] - 1)


def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    distances = [(abs(estimate - left), left), (abs(estimate - up), up), (abs(estimate - corner), corner)]
    return min(distances, key=lambda pair: pair[0])[1]  # the first of equal ones
