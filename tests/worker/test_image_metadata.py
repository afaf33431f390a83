"""What a file holds beside its pixels is skipped or obeyed as in a browser; kinds that are not decoded are named."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from maskfleet.api.image_header import read_header
from maskfleet.worker.image.decode import decode_photo
from maskfleet.worker.image.values import ValueRange
from tests.references import shown
from tests.worker.test_images import UPRIGHT, corners, fault_of, quarters, written
from tests.worker.test_tiff import CASES, LIMIT, assert_shows, decoded

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ANCILLARY = [
    "tEXt",
    "zTXt",
    "iTXt",
    "iCCP",
    "gAMA",
    "sRGB",
    "pHYs",
    "tIME",
    "bKGD",
    "hIST",
    "sPLT",
    "sBIT",
    "acTL",
    "fcTL",
]
#: Megabytes of text in a few kilobytes.
BOMB = zlib.compress(bytes(64 * 2**20), 9)
TURNED = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="t"><a tiff:Orientation="6"/></x:xmpmeta>'


def chunk(kind: bytes, content: bytes, *, intact: bool = True) -> bytes:
    checksum = zlib.crc32(kind + content) ^ (not intact)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    samples: Any, colour_type: int, bits: int, *, before: bytes = b"", after: bytes = b""
) -> bytes:  # Any: an array
    """Write samples (H, W, n).  before, after: chunks around the pixels."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return SIGNATURE + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


CORNERS = np.asarray(corners())


@pytest.mark.parametrize("kind", ANCILLARY)
@pytest.mark.parametrize("content", [b"", b"\xff" * 5, b"name\0\0" + BOMB, b"k\0\1\0\0\0" + BOMB, bytes(2 * 2**20)])
@pytest.mark.parametrize("intact", [False, True])
def test_chunks_that_pixels_do_not_need_are_skipped_whatever_they_hold(kind: str, content: bytes, intact: bool) -> None:
    extra = chunk(kind.encode(), content, intact=intact)
    for bits, scale in ((8, 1), (16, 257)):
        for around in ({"before": extra}, {"after": extra}):
            photo = decoded(png(CORNERS.astype(np.uint16) * scale, 2, bits, **around))

            assert np.array_equal(photo.pixels, CORNERS)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_chunks_that_pixels_need_are_checked(kind: bytes) -> None:
    data = bytearray(written(corners().quantize(), "PNG"))
    data[data.index(kind) + 7] ^= 1

    assert fault_of(bytes(data)).code == "image_corrupt"


@pytest.mark.parametrize("intact", [False, True])
def test_transparency_and_orientation_count_only_with_the_right_checksum(intact: bool) -> None:
    grey = np.full((4, 6, 1), 100)
    for bits in (8, 16):
        clear = chunk(b"tRNS", struct.pack(">H", 100), intact=intact)
        turned = chunk(b"eXIf", TURNED, intact=intact)

        photo = decoded(png(grey, 0, bits, before=clear + turned))

        assert photo.size_wh == ((4, 6) if intact else (6, 4))
        assert (photo.pixels.min() == 255) == intact


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
@pytest.mark.parametrize("top", [1023, 4095, 65535])
def test_16_bits_of_every_kind_are_scaled_to_what_they_reach(colour_type: int, top: int) -> None:
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    values = np.random.default_rng(top).integers(0, top + 1, (20, 30, samples)).astype(np.uint16)
    values[0, 0] = top
    if colour_type >= 4:
        values[..., -1] = top

    photo = decoded(png(values, colour_type, 16))

    assert_shows(photo, shown(values[..., : 3 if samples >= 3 else 1]))
    assert photo.values == ValueRange(0, top, top != 65535)


def test_16_bits_with_alpha_are_laid_on_white() -> None:
    values = np.full((2, 2, 4), 65535, np.uint16)
    values[..., 1:3], values[0, :, 3] = 0, 0

    photo = decoded(png(values, 6, 16))

    assert photo.pixels[:, 0].tolist() == [[255, 255, 255], [255, 0, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_turned_as_8_are(orientation: int) -> None:
    turned = chunk(b"eXIf", TURNED.replace(b"\1\0\0\0\6", b"\1\0\0\0" + bytes([orientation])))
    noise = np.random.default_rng(1).integers(0, 256, (13, 7, 3)).astype(np.uint16)

    one, other = (decoded(png(noise * scale, 2, bits, before=turned)) for bits, scale in ((8, 1), (16, 257)))

    assert np.array_equal(one.pixels, other.pixels)


def test_a_deep_png_that_is_broken_is_refused_as_a_flat_one() -> None:
    data = png(np.random.default_rng(1).integers(0, 65536, (64, 64, 3)), 2, 16)
    damaged = bytearray(data)
    damaged[data.index(b"IDAT") + 4 : data.index(b"IDAT") + 12] = b"\xff" * 8

    assert fault_of(data[: len(data) // 2]).code == "image_truncated"
    assert fault_of(bytes(damaged)).code == "image_corrupt"
    assert fault_of(data, 64 * 64 - 1).code == "image_too_large"
    assert (
        fault_of(png(np.zeros((1, 1, 3)), 2, 16).replace(struct.pack(">II", 1, 1), bytes(8), 1)).code == "image_corrupt"
    )


def test_an_animated_png_shows_its_default_image() -> None:
    black = Image.new("RGB", (64, 48))

    assert quarters(decoded(written(corners(), "PNG", save_all=True, append_images=[black]))) == UPRIGHT


@pytest.mark.parametrize("name", [path.name for path in sorted(CASES.glob("p*.png"))])
def test_pngs_that_people_reported_to_other_projects_are_decoded(name: str) -> None:
    reference = decode_photo((CASES / "reference_rgb.png").read_bytes(), LIMIT)

    assert np.array_equal(decoded((CASES / name).read_bytes()).pixels, reference.pixels)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_alone_turns_nothing(file_format: str) -> None:
    if file_format == "PNG":
        data = png(CORNERS, 2, 8, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))
    elif file_format == "TIFF":
        data = written(corners(), file_format, tiffinfo={700: XMP})
    else:
        data = written(corners(), file_format, xmp=XMP)

    photo = decoded(data)

    assert XMP in data
    assert read_header(data, LIMIT).size_wh == photo.size_wh == (64, 48)
    assert quarters(photo) == UPRIGHT


def test_a_jpeg_that_only_xmp_turns_is_shown_as_browsers_show_it() -> None:
    photo = decoded((CASES / "jpeg_orientation_in_xmp_only.jpg").read_bytes())
    reference = decode_photo((CASES / "reference_rgb.png").read_bytes(), LIMIT)

    assert np.abs(photo.pixels.astype(int) - reference.pixels).mean() < 2


def test_exif_wins_over_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for file_format in ("JPEG", "WEBP"):
        data = written(corners().rotate(180), file_format, exif=exif, xmp=XMP)

        assert quarters(decoded(data)) == UPRIGHT


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "metadata", [{"exif": b"Exif\0\0broken"}, {"icc_profile": b"\xff" * 3000}, {"xmp": b"\xff" * 9}]
)
def test_metadata_that_makes_no_sense_is_skipped(file_format: str, metadata: dict[str, bytes]) -> None:
    if file_format == "TIFF":
        metadata = {"icc_profile": next(iter(metadata.values()))}

    assert quarters(decoded(written(corners(), file_format, **metadata))) == UPRIGHT


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_jpegs_of_every_kind_are_decoded(mode: str, options: dict[str, Any]) -> None:
    image = Image.linear_gradient("L").convert(mode)

    photo = decoded(written(image, "JPEG", quality=95, **options))

    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(photo.pixels - expected).mean() < 2


def test_what_follows_the_end_of_a_jpeg_is_skipped() -> None:
    assert quarters(decoded(written(corners(), "JPEG") + bytes(5000) + b"\xff\xd8\xff")) == UPRIGHT


def test_a_jpeg_with_several_pictures_shows_the_first() -> None:
    data = written(corners(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))])

    photo = decoded(data)

    assert photo.format == "JPEG"
    assert quarters(photo) == UPRIGHT


@pytest.mark.parametrize("part", [0.3, 0.9])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_truncated(part: float, progressive: bool) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = written(Image.fromarray(noise), "JPEG", progressive=progressive)

    assert fault_of(data[: int(part * len(data))]).code == "image_truncated"
    assert fault_of(data[:-2]).code == "image_truncated"


def _bitmap_holding(compression: int) -> bytes:
    data = bytearray(written(corners(), "BMP"))
    data[30:34] = struct.pack("<I", compression)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (imagecodecs.jpeg8_encode(CORNERS.astype(np.uint16) * 16, bitspersample=12), "12 bits"),
        (imagecodecs.ljpeg_encode(CORNERS[..., 0].astype(np.uint16), bitspersample=12), "lossless JPEG"),
        (imagecodecs.jpegls_encode(CORNERS), "JPEG-LS"),
        (_bitmap_holding(4), "a JPEG inside a bitmap"),
        (_bitmap_holding(5), "a PNG inside a bitmap"),
        (SIGNATURE + chunk(b"CgBI", bytes(4)) + png(CORNERS, 2, 8)[8:].replace(b"x\x9c", b"\xff\xff"), "CgBI"),
    ],
)
def test_kinds_that_are_not_decoded_are_named(data: bytes, named: str) -> None:
    fault = fault_of(data)

    assert fault.code == "image_unsupported"
    assert named in fault.detail
    assert "Save it" in fault.detail


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (imagecodecs.avif_encode(CORNERS), "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "CR3"),
        (imagecodecs.jpegxl_encode(CORNERS), "JPEG XL"),
        (imagecodecs.jpeg2k_encode(CORNERS), "JPEG 2000"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"IIRO\x08\0\0\0", "ORF"),
    ],
)
def test_other_formats_are_called_by_their_name(data: bytes, named: str) -> None:
    fault = fault_of(data)

    assert fault.code == "not_an_image"
    assert named in fault.detail
    assert "JPEG, PNG, WEBP, TIFF, BMP, GIF" in fault.detail
