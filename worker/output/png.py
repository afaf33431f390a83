"""PNG files, from pixels as they are painted.

Rows that are all black cost nothing: a deflate stream is a sequence of blocks, and the blocks of zeros are ready-made.
Source: W3C, "Portable Network Graphics (PNG) Specification", 5 and 9; RFC 1950 and 1951.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from maskfleet.worker.masks.kernel import kernel

Bytes = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Fewer zeros than this are not worth a block of their own.
_LEAST_ZEROS_EXPONENT = 12
_MOST_ZEROS_EXPONENT = 20
#: The largest prime below 2**16.  Source: RFC 1950, 2.2.
_ADLER_MODULUS = 65521
#: Rows that are filtered and compressed at once.
_ROWS_AT_ONCE = 64
_UP, _PAETH = 2, 4


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How a PNG's pixels are stored, and how they are compressed: how well (1 to 9), and looking for what.

    Source: the specification's table 11.1 for the colour types.
    """

    bit_depth: int
    colour_type: int
    channels: int
    level: int
    strategy: int = zlib_ng.Z_DEFAULT_STRATEGY


#: What is left of a mask's rows after those above are subtracted is zeros with bytes of the outline between them:
#: looking for runs alone takes a fifth of the time of level 6, and files are up to a tenth larger.
BITS = PixelFormat(1, 0, 1, level=1, strategy=zlib_ng.Z_RLE)
GREY_16 = PixelFormat(16, 0, 1, level=6)
#: At 3, a picture of masks on a photograph takes a third of the time of 6 and is 8 % larger.
RGB = PixelFormat(8, 2, 3, level=3)


def write_png(
    size_wh: tuple[int, int], pixel_format: PixelFormat, pieces: Iterable[Bytes], first_row: int = 0
) -> bytes:
    """Write a PNG.

    pieces: its rows from first_row on, some at a time, each with its filter type before it; others are black.
    """
    width, height = size_wh
    row_bytes = 1 + (width * pixel_format.bit_depth * pixel_format.channels + 7) // 8
    stream, rows = _ZlibStream(pixel_format.level, pixel_format.strategy), first_row
    stream.add_zeros(first_row * row_bytes)
    for piece in pieces:
        stream.add(piece)
        rows += len(piece)
    stream.add_zeros((height - rows) * row_bytes)
    header = struct.pack(">IIBBBBB", width, height, pixel_format.bit_depth, pixel_format.colour_type, 0, 0, 0)
    chunks = (_chunk(b"IHDR", [header]), _chunk(b"IDAT", stream.finish()), _chunk(b"IEND", []))
    return b"".join([_SIGNATURE, *(part for chunk in chunks for part in chunk)])


def filtered_up(pixels: Bytes, first: int, stop: int) -> Iterator[Bytes]:
    """Yield the rows first to stop of (H, bytes) as differences from the row above, which suits plain areas."""
    for start in range(first, stop, _ROWS_AT_ONCE):
        piece = np.empty((min(_ROWS_AT_ONCE, stop - start), 1 + pixels.shape[1]), np.uint8)
        _subtract_above(pixels, start, piece)
        yield piece


def filtered_paeth(pixels: Bytes) -> Iterator[Bytes]:
    """Yield the rows of an RGB picture (H, W, 3) as differences from Paeth's predictor, which suits photographs."""
    flat = pixels.reshape(len(pixels), -1)
    for start in range(0, len(flat), _ROWS_AT_ONCE):
        piece = np.empty((min(_ROWS_AT_ONCE, len(flat) - start), 1 + flat.shape[1]), np.uint8)
        _subtract_paeth(flat, start, piece)
        yield piece


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    list(filtered_up(np.zeros((1, 1), np.uint8), 0, 1))
    picture = np.zeros((1, 1, 3), np.uint8)
    picture.setflags(write=False)  # as Pillow's are
    list(filtered_paeth(picture))


class _Compressor(Protocol):
    def compress(self, data: Bytes | bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


class _ZlibStream:
    """Bytes compressed into one zlib stream, in pieces."""

    def __init__(self, level: int, strategy: int) -> None:
        self._level, self._strategy = level, strategy
        self._parts = [b"\x78\x01"]
        self._adler = 1
        self._compressor: _Compressor | None = None

    def add(self, data: Bytes) -> None:
        self._adler = zlib_ng.adler32(data, self._adler)
        self._compress(data)

    def add_zeros(self, count: int) -> None:
        low, high = self._adler & 0xFFFF, self._adler >> 16
        self._adler = (high + count * low) % _ADLER_MODULUS << 16 | low
        blocks, rest = divmod(count, 1 << _LEAST_ZEROS_EXPONENT)
        if blocks:
            self._end_block(zlib_ng.Z_SYNC_FLUSH)
            whole, blocks = divmod(blocks, 1 << _MOST_ZEROS_EXPONENT - _LEAST_ZEROS_EXPONENT)
            self._parts += [_zeros(_MOST_ZEROS_EXPONENT)] * whole
            for exponent in range(_LEAST_ZEROS_EXPONENT, _MOST_ZEROS_EXPONENT):
                if blocks >> exponent - _LEAST_ZEROS_EXPONENT & 1:
                    self._parts.append(_zeros(exponent))
        if rest:
            self._compress(bytes(rest))

    def finish(self) -> list[bytes]:
        """Return the stream, in parts."""
        self._compress(b"")
        self._end_block(zlib_ng.Z_FINISH)
        return [*self._parts, struct.pack(">I", self._adler)]

    def _compress(self, data: Bytes | bytes) -> None:
        if self._compressor is None:
            self._compressor = _compressor(self._level, self._strategy)
        self._parts.append(self._compressor.compress(data))

    def _end_block(self, mode: int) -> None:
        # What follows begins with another compressor: this one would reach back over bytes that it has not seen.
        if self._compressor is not None:
            self._parts.append(self._compressor.flush(mode))
            self._compressor = None


@cache
def _zeros(exponent: int) -> bytes:
    """Return 2**exponent zeros as deflate blocks that end at a byte's end and are not the last."""
    compressor = _compressor(9)
    return compressor.compress(bytes(1 << exponent)) + compressor.flush(zlib_ng.Z_SYNC_FLUSH)


def _compressor(level: int, strategy: int = zlib_ng.Z_DEFAULT_STRATEGY) -> _Compressor:
    """Return a compressor to raw deflate."""
    return zlib_ng.compressobj(level, zlib_ng.DEFLATED, -zlib_ng.MAX_WBITS, strategy=strategy)


def _chunk(name: bytes, parts: list[bytes]) -> list[bytes]:
    checksum = zlib_ng.crc32(name)
    for part in parts:
        checksum = zlib_ng.crc32(part, checksum)
    return [struct.pack(">I", sum(map(len, parts))), name, *parts, struct.pack(">I", checksum)]


@kernel
def _subtract_above(pixels: Bytes, first: int, piece: Bytes) -> None:
    for y in range(len(piece)):
        row, out = pixels[first + y], piece[y]
        out[0] = _UP
        if first + y == 0:
            out[1:] = row
        else:
            above = pixels[first + y - 1]
            for x in range(len(row)):
                out[1 + x] = row[x] - above[x]


@kernel
def _subtract_paeth(pixels: Bytes, first: int, piece: Bytes) -> None:
    """Source: the PNG specification, 9.4; in float32, whose loops the compiler makes vectors of."""
    nothing = np.zeros(pixels.shape[1], np.uint8)
    for y in range(len(piece)):
        row, out = pixels[first + y], piece[y]
        above = pixels[first + y - 1] if first + y else nothing
        out[0] = _PAETH
        for x in range(3):
            out[1 + x] = row[x] - above[x]
        for x in range(len(row) - 3):
            left, up, corner = np.float32(row[x]), np.float32(above[x + 3]), np.float32(above[x])
            by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - corner - corner)
            nearest = left if by_left <= by_up and by_left <= by_corner else up if by_up <= by_corner else corner
            out[4 + x] = row[x + 3] - np.uint8(nearest)
