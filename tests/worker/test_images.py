"""Every accepted image is decoded as a viewer displays it; every other one is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from maskfleet.jobs.errors import InvalidImage
from maskfleet.jobs.image_types import IMAGE_FORMATS
from maskfleet.worker.image.decode import Photo, decode_photo

LIMIT = 1_000_000


def corners(size_wh: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return an image whose quarters are red, green, blue and white, so that rotations are visible."""
    width, height = size_wh
    image = Image.new("RGB", size_wh, "white")
    image.paste("red", (0, 0, width // 2, height // 2))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    return image


def written(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def quarters(photo: Photo) -> list[tuple[int, ...]]:
    """Return the colours at the centres of the quarters, rounded to 0 or 255: red, green, blue, white if upright."""
    width, height = photo.size_wh
    return [
        tuple(255 if value > 127 else 0 for value in photo.pixels[y, x].tolist())
        for y in (height // 4, 3 * height // 4)
        for x in (width // 4, 3 * width // 4)
    ]


UPRIGHT = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def fault_of(data: bytes, limit: int = LIMIT) -> InvalidImage:
    with pytest.raises(InvalidImage) as refused:
        decode_photo(data, limit)
    return refused.value


@pytest.mark.parametrize("file_format", IMAGE_FORMATS)
def test_each_format_is_decoded(file_format: str) -> None:
    photo = decode_photo(written(corners(), file_format), LIMIT)

    assert photo.size_wh == (64, 48)
    assert photo.format == file_format
    assert photo.pixels.shape == (48, 64, 3)
    assert photo.pixels.dtype == np.uint8
    assert quarters(photo) == UPRIGHT


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    turned_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corners().transpose(turned_back[orientation]) if orientation > 1 else corners()
    exif = Image.Exif()
    exif[0x0112] = orientation

    photo = decode_photo(written(stored, file_format, exif=exif), LIMIT)

    assert photo.size_wh == (64, 48)
    assert quarters(photo) == UPRIGHT


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
    ],
)
def test_each_mode_becomes_rgb(mode: str, file_format: str) -> None:
    photo = decode_photo(written(corners().convert(mode), file_format), LIMIT)

    assert quarters(photo) == UPRIGHT


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_has_three_equal_channels(mode: str) -> None:
    grey = Image.linear_gradient("L").convert(mode)

    photo = decode_photo(written(grey, "PNG"), LIMIT)

    assert np.array_equal(photo.pixels, np.repeat(np.asarray(grey.convert("L"))[..., None], 3, axis=2))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(file_format: str) -> None:
    deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)

    photo = decode_photo(written(Image.fromarray(deep), file_format), LIMIT)

    assert np.array_equal(photo.pixels[..., 0], np.rint(deep / 257).astype(np.uint8))
    assert photo.pixels.max() == 255


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 100.0, 255.0]], [[0, 100, 255]]),
        ([[-4.0, 0.0, 4.0]], [[0, 128, 255]]),
        ([[float("nan"), 0.0, 1.0]], [[0, 0, 255]]),
    ],
)
def test_floating_values_are_brought_into_range(values: list[list[float]], shown: list[list[int]]) -> None:
    image = Image.fromarray(np.array(values, dtype=np.float32))

    photo = decode_photo(written(image, "TIFF"), LIMIT)

    assert photo.pixels[..., 0].tolist() == shown


def test_transparent_parts_are_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    clear.putpixel((1, 1), (200, 10, 10, 255))

    photo = decode_photo(written(clear, "PNG"), LIMIT)

    assert photo.pixels[0, 0].tolist() == [255, 255, 255]
    assert photo.pixels[1, 1].tolist() == [200, 10, 10]


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_taken(file_format: str) -> None:
    data = written(corners(), file_format, save_all=True, append_images=[Image.new("RGB", (64, 48), "black")])

    assert quarters(decode_photo(data, LIMIT)) == UPRIGHT


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_and_tiny_images_are_decoded(size_wh: tuple[int, int]) -> None:
    assert decode_photo(written(Image.new("RGB", size_wh), "PNG"), LIMIT).size_wh == size_wh


def test_zero_bytes_are_refused() -> None:
    assert fault_of(b"").code == "image_empty"


def test_html_in_place_of_a_jpeg_is_called_so() -> None:
    fault = fault_of(b"\n<!DOCTYPE html><html><body>Please log in</body></html>")

    assert fault.code == "not_an_image"
    assert "HTML" in fault.detail


@pytest.mark.parametrize(
    "data", [b"%PDF-1.7 ...", b"PK\x03\x04 zip", b"\x00" * 100, written(corners(), "PPM"), written(corners(), "ICO")]
)
def test_other_files_are_not_images(data: bytes) -> None:
    assert fault_of(data).code == "not_an_image"


@pytest.mark.parametrize("file_format", IMAGE_FORMATS)
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_file_that_breaks_off_is_truncated(file_format: str, part: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = written(Image.fromarray(noise), file_format)

    assert fault_of(data[: int(len(data) * part)]).code == "image_truncated"


def test_a_damaged_file_is_corrupt() -> None:
    data = bytearray(written(corners(), "PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 8] = b"\xff" * 8

    assert fault_of(bytes(data)).code == "image_corrupt"


@pytest.mark.parametrize("kind", ["png", "png without pixels", "jpeg", "gif", "bmp", "webp", "webp animation", "tiff"])
def test_a_huge_picture_is_refused_by_its_header(kind: str) -> None:
    fault = fault_of(_headers_of(kind, 3000))

    assert fault.code == "image_too_large"
    assert f"{LIMIT:,}" in fault.detail


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff"])
def test_a_huge_picture_is_not_decoded_before_it_is_refused(kind: str) -> None:
    # The same file, within a limit that allows its size, has no pixels to decode: so it was refused above for its size.
    fault = fault_of(_headers_of(kind, 3000), limit=3000 * 3000)

    assert fault.code in ("image_truncated", "image_corrupt")


def test_a_bomb_of_ten_gigapixels_is_refused_at_once() -> None:
    assert fault_of(_headers_of("png", 100_000)).code == "image_too_large"


def test_pillows_own_limit_does_not_lower_ours() -> None:
    # Pillow warns above 89 million pixels and fails above 179 million.
    plain = written(Image.new("1", (14_000, 13_000)), "PNG")

    assert fault_of(plain, limit=14_000 * 13_000 - 1).code == "image_too_large"
    assert fault_of(_headers_of("png", 14_000), limit=14_000**2).code == "image_truncated"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file_format=st.sampled_from(IMAGE_FORMATS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.floats(0.05, 1),
)
def test_a_file_with_wrong_bytes_is_decoded_or_refused(
    file_format: str, changes: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(written(corners((16, 12)), file_format))
    for place, value in changes:
        data[int(place * len(data))] = value

    try:
        photo = decode_photo(bytes(data[: int(cut * len(data))]), 10_000)
    except InvalidImage as fault:
        assert fault.code in (  # noqa: PT017
            "not_an_image",
            "image_too_large",
            "image_truncated",
            "image_corrupt",
            "image_unsupported",
        )
    else:
        assert photo.pixels.shape == (photo.size_wh[1], photo.size_wh[0], 3)


def _headers_of(kind: str, side: int) -> bytes:
    """Return a small file whose header declares side × side pixels that it does not contain."""
    if kind.startswith("png"):
        header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        pixels = b"" if "without" in kind else _chunk(b"IDAT", zlib.compress(bytes(100)))
        return b"\x89PNG\r\n\x1a\n" + header + pixels
    if kind == "webp animation":
        size = (side - 1).to_bytes(3, "little")
        return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + size
    small = Image.new("RGB", (16, 16))
    data = bytearray(written(small, kind, **({"lossless": True} if kind == "webp" else {})))
    if kind == "jpeg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", side, side)
        return bytes(data[: data.index(b"\xff\xda") + 20])
    if kind == "gif":
        screen, frame = slice(6, 10), data.index(b"\x2c\0\0\0\0") + 5
        data[screen] = data[frame : frame + 4] = struct.pack("<HH", side, side)
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "webp":
        data[21:25] = ((side - 1) | (side - 1) << 14).to_bytes(4, "little")
    elif kind == "tiff":
        for tag in (256, 257):  # ImageWidth, ImageLength: short values, count 1
            place = data.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in data else -1
            if place < 0:
                place = data.index(struct.pack("<HHI", tag, 3, 1))
            data[place + 8 : place + 12] = struct.pack("<I", side)
    return bytes(data)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
