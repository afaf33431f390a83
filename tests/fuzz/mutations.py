"""Nearly valid image files: a valid one of each format and kind, damaged in one of many ways.

The same seed and number give the same file.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

Mutation = Callable[[bytearray, random.Random, list[bytes]], bytes]

#: Sizes, counts and offsets that often break code.
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
#: The first bytes matter most: sizes, tables, directories.
_HEADER_BYTES = 160


def valid_files() -> list[bytes]:
    """Return small images in every accepted format, in its modes and compressions."""
    noise = np.random.default_rng(1).integers(0, 256, (23, 37, 4), dtype=np.uint8)
    smooth = np.add.outer(np.arange(90), np.arange(140)).astype(np.uint8)
    rgba, grey = Image.fromarray(noise, "RGBA"), Image.fromarray(smooth)
    rgb = Image.merge("RGB", (grey, grey.rotate(180), grey))
    deep = Image.fromarray(smooth.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgba.rotate(90, expand=False), rgba.rotate(180)]}
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((image, "JPEG", {}) for image in (grey, rgb, rgb.convert("CMYK"))),
        (rgb, "JPEG", {"progressive": True, "exif": exif, "icc_profile": bytes(200)}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        *((image, "PNG", {}) for image in (grey.convert("1"), grey, grey.convert("LA"), rgb, rgba, deep)),
        (rgb.quantize(), "PNG", {"transparency": 3, "exif": exif}),
        (rgba, "PNG", frames),
        (rgb, "WEBP", {"exif": exif}),
        (rgba, "WEBP", {"lossless": True}),
        (rgba, "WEBP", frames),
        *((image, "TIFF", {}) for image in (grey.convert("1"), grey, rgb, rgba, deep, grey.convert("F"))),
        *((rgb, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (rgb, "TIFF", {"big_tiff": True, "exif": exif}),
        (rgb, "TIFF", {"save_all": True, "append_images": [grey]}),
        *((image, "BMP", {}) for image in (grey.convert("1"), grey, rgb.quantize(), rgb, rgba)),
        *((image, "GIF", {}) for image in (grey, rgb)),
        (rgba, "GIF", {**frames, "transparency": 0}),
    ]
    return [_written(image, file_format, options) for image, file_format, options in kinds] + _rare_tiffs(smooth)


def _rare_tiffs(smooth: npt.NDArray[np.uint8]) -> list[bytes]:
    """Return those that Pillow does not write: deep, in planes and tiles, with other compressions, with a thumbnail."""
    colours = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=2)
    deep = colours.astype(np.uint16) * 16
    floats = colours.astype(np.float32) - 9
    floats[0] = np.nan
    kinds: list[tuple[npt.NDArray[Any], dict[str, Any]]] = [
        (deep, {"photometric": "minisblack", "planarconfig": "contig", "compression": "zstd", "predictor": True}),
        (np.moveaxis(deep, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 32)}),
        (deep[..., 0], {"photometric": "miniswhite", "byteorder": ">", "compression": "lzw", "predictor": True}),
        (floats, {"photometric": "rgb", "compression": "deflate", "predictor": True, "rowsperstrip": 11}),
        (floats[..., 0], {"photometric": "minisblack", "extratags": [(42113, "s", 0, "-9", True)], "bigtiff": True}),
        (smooth.astype(np.float64), {"photometric": "minisblack", "compression": "lzma", "tile": (32, 32)}),
        (smooth, {"photometric": "minisblack", "compression": "packbits", "rowsperstrip": 7}),
        (colours, {"photometric": "ycbcr", "compression": "jpeg", "tile": (32, 48)}),
        *((colours, {"photometric": "rgb", "compression": name}) for name in ("webp", "jpeg2000", "jpegxl")),
        (floats[1:, :, 0], {"photometric": "minisblack", "compression": "lerc"}),
        (np.dstack([colours, smooth]), {"photometric": "separated", "planarconfig": "contig"}),
        (np.dstack([colours, smooth]), {"photometric": "rgb", "extrasamples": ["assocalpha"], "tile": (16, 16)}),
    ]
    return [_tiff(samples, options) for samples, options in kinds] + [_with_thumbnail(colours)]


def _tiff(samples: npt.NDArray[Any], options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, metadata=None, **options)
    return buffer.getvalue()


def _with_thumbnail(picture: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(picture[::8, ::8], photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        file.write(picture, photometric="rgb", compression="deflate", metadata=None)
    return buffer.getvalue()


def mutated(files: list[bytes], seed: int, number: int) -> bytes:
    """Return one of the files, damaged mostly in one way, sometimes in several."""
    dice = random.Random(f"{seed} {number}")
    data = dice.choice(files)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        data = dice.choice(MUTATIONS)(bytearray(data), dice, files)
    # A wrong checksum would hide everything else from the decoder.
    return _with_right_checksums(data) if data.startswith(b"\x89PNG") and dice.random() < 0.7 else data


def flip_bits(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    for _ in range(dice.choice((1, 1, 2, 8, 32))):
        if data:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def truncate(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    return bytes(data[: dice.randrange(len(data) + 1)])


def splice(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    """Join the start of one file and the end of another."""
    other = dice.choice(files)
    return bytes(data[: dice.randrange(len(data) + 1)]) + other[dice.randrange(len(other)) :]


def lie_in_the_header(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    """Overwrite the file's first bytes with numbers that often break code, in either byte order."""
    for _ in range(dice.choice((1, 1, 2, 4))):
        size, order = dice.choice((1, 2, 4)), dice.choice("<>")
        number = struct.pack(order + {1: "B", 2: "H", 4: "I"}[size], dice.choice(_EDGES) % 256**size)
        at = dice.randrange(max(1, min(len(data), _HEADER_BYTES) - size))
        data[at : at + size] = number
    return bytes(data)


def repeat_a_part(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    start, length = _part(data, dice)
    return bytes(
        data[: start + length] + data[start : start + length] * dice.choice((1, 2, 50)) + data[start + length :]
    )


def leave_a_part_out(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    start, length = _part(data, dice)
    return bytes(data[:start] + data[start + length :])


def move_a_part(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    start, length = _part(data, dice)
    rest = data[:start] + data[start + length :]
    to = dice.randrange(len(rest) + 1)
    return bytes(rest[:to] + data[start : start + length] + rest[to:])


def overwrite_a_part(data: bytearray, dice: random.Random, files: list[bytes]) -> bytes:
    start, length = _part(data, dice)
    data[start : start + length] = dice.choice((bytes(length), b"\xff" * length, dice.randbytes(length)))
    return bytes(data)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    truncate,
    splice,
    lie_in_the_header,
    lie_in_the_header,
    repeat_a_part,
    leave_a_part_out,
    move_a_part,
    overwrite_a_part,
)


def _part(data: bytearray, dice: random.Random) -> tuple[int, int]:
    start = dice.randrange(max(1, len(data)))
    return start, min(dice.choice((1, 2, 4, 12, 64, 512, 4096)), len(data) - start)


def _with_right_checksums(data: bytes) -> bytes:
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        parts += [data[at:end], struct.pack(">I", zlib.crc32(data[at + 4 : end]))]
        at = end + 4
    return b"".join([*parts, data[at:]])


def _written(image: Image.Image, file_format: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
