"""The header parser agrees with Pillow, and refuses only what is certainly invalid."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from maskfleet.api.image_header import read_header
from maskfleet.jobs.errors import InvalidImage
from tests.api.pictures import a_picture

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
#: BMP and GIF hold no EXIF.
FORMATS_WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF")


def the_size_a_viewer_shows(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).size


def size_or_refusal(data: bytes) -> tuple[int, int] | str | None:
    try:
        return read_header(data, MAX_PIXELS).size_wh
    except InvalidImage as refusal:
        return refusal.code


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("size_wh", [(1, 1), (1, 5000), (37, 23), (300, 200)])
def test_the_size_is_the_one_that_pillow_reads(file_format: str, size_wh: tuple[int, int]) -> None:
    data = a_picture(size_wh, file_format)

    header = read_header(data, MAX_PIXELS)

    assert header.size_wh == size_wh == the_size_a_viewer_shows(data)
    assert header.content_type == f"image/{file_format.lower()}"


@pytest.mark.parametrize("file_format", FORMATS_WITH_EXIF)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_the_upright_one_when_exif_turns_the_picture(file_format: str, orientation: int) -> None:
    data = a_picture((37, 23), file_format, orientation=orientation)

    header = read_header(data, MAX_PIXELS)

    assert header.size_wh == the_size_a_viewer_shows(data)
    assert header.size_wh == ((23, 37) if orientation >= 5 else (37, 23))


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_the_variants_of_a_format_are_read(file_format: str, options: dict[str, object]) -> None:
    data = a_picture((61, 47), file_format, **options)

    assert read_header(data, MAX_PIXELS).size_wh == (61, 47)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_alone_turns_nothing(file_format: str) -> None:
    data = a_picture((37, 23), file_format, xmp=b'<x xmlns:tiff="t" tiff:Orientation="6"/>')

    assert read_header(data, MAX_PIXELS).size_wh == (37, 23)


def test_an_orientation_behind_the_pixels_leaves_the_size_open() -> None:
    plain = a_picture((37, 23), "PNG")
    turned = a_picture((37, 23), "PNG", orientation=6)
    chunk_at = turned.index(b"eXIf") - 4
    chunk = turned[chunk_at : chunk_at + 12 + int.from_bytes(turned[chunk_at : chunk_at + 4], "big")]
    data = plain[:-12] + chunk + plain[-12:]

    assert the_size_a_viewer_shows(data) == (23, 37)
    assert read_header(data, MAX_PIXELS).size_wh is None


def test_the_bundled_photographs_are_read(repository: Path) -> None:
    photographs = [path for path in (repository / "examples").iterdir() if path.suffix in (".png", ".jpg", ".jpeg")]

    assert photographs
    for path in photographs:
        data = path.read_bytes()
        assert read_header(data, MAX_PIXELS).size_wh == the_size_a_viewer_shows(data), path.name


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_picture_with_more_pixels_than_allowed_is_too_large(file_format: str) -> None:
    data = a_picture((40, 30), file_format)

    with pytest.raises(InvalidImage, match="40×30") as refusal:
        read_header(data, 1199)

    assert refusal.value.code == "image_too_large"
    assert read_header(data, 1200).size_wh == (40, 30)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_that_ends_inside_its_header_is_truncated(file_format: str) -> None:
    data = a_picture((40, 30), file_format)

    with pytest.raises(InvalidImage) as refusal:
        read_header(data[:12], MAX_PIXELS)

    assert refusal.value.code == "image_truncated"


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_beginning_of_a_file_gets_another_size(file_format: str) -> None:
    data = a_picture((40, 30), file_format, **({"orientation": 6} if file_format in FORMATS_WITH_EXIF else {}))
    allowed = [read_header(data, MAX_PIXELS).size_wh]
    if file_format in ("PNG", "WEBP"):  # truncated before the EXIF orientation; the worker will not decode it
        allowed.append((40, 30))

    for length in range(1, len(data)):
        assert size_or_refusal(data[:length]) in (*allowed, None, "image_truncated", "not_an_image")


@settings(max_examples=300, deadline=None)
@given(
    file_format=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_refused_with_a_code_or_passed_on(file_format: str, edits: list[tuple[int, int]]) -> None:
    data = bytearray(_UNDAMAGED[file_format])
    for at, value in edits:
        data[at % len(data)] = value

    read = size_or_refusal(bytes(data))

    assert not isinstance(read, str) or read in ("image_truncated", "not_an_image", "image_too_large")


_UNDAMAGED = {
    file_format: a_picture((40, 30), file_format, **({"orientation": 6} if file_format in FORMATS_WITH_EXIF else {}))
    for file_format in FORMATS
}


@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_of_big_tiff_beyond_any_file_are_a_truncated_file(order: str) -> None:
    mark = b"II" if order == "<" else b"MM"

    with pytest.raises(InvalidImage) as refusal:
        read_header(mark + struct.pack(order + "HHHQ", 43, 8, 0, 2**64 - 1) + bytes(64), 10_000)

    assert refusal.value.code == "image_truncated"


@pytest.mark.parametrize("damage", [{"count": 3}, {"count": 2**30}, {"tag": 256}])
def test_a_tag_that_decoders_read_differently_leaves_the_size_to_the_worker(damage: dict[str, int]) -> None:
    """A height with several values, or a width that is there twice."""
    width, height = struct.pack("<HHII", 256, 4, 1, 64), struct.pack("<HHII", 257, 4, 1, 48)
    odd = struct.pack("<HHII", damage.get("tag", 257), 4, damage.get("count", 1), 999)
    entries = width + (height + odd if "tag" in damage else odd)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries) // 12) + entries + bytes(4)

    assert read_header(tiff, 10_000).size_wh is None
