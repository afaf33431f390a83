"""TIFFs of every kind: the pixels are those that the file's own tags say, or the refusal names what the file is.

The sweep writes files with tifffile, and those that it does not write with `tiff_bytes`; what must come out is computed
from what was written, by `shown`.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from maskfleet.api.image_header import read_header
from maskfleet.jobs.errors import InvalidImage
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.image.values import ValueRange
from tests.references import range_shown, shown
from tests.worker.test_images import UPRIGHT, corners, fault_of, quarters, written
from tests.worker.tiff_bytes import LONG, SHORT, packed, picture_tags, tiff_bytes

LIMIT = 1_000_000
CASES = Path(__file__).parent / "images"
LOSSLESS = (None, "lzw", "deflate", "packbits", "zstd", "lzma")
DTYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
#: Photometric interpretations with the samples per pixel that they come with.
KINDS = [
    *(("miniswhite", samples) for samples in (1, 2, 3, 5)),
    *(("minisblack", samples) for samples in (1, 2, 3, 4, 7)),
    *(("rgb", samples) for samples in (3, 4, 5)),
]
Array = npt.NDArray[Any]


def decoded(data: bytes) -> Photo:
    """Decode a file, and check that the API's header agrees."""
    photo = decode_photo(data, LIMIT)
    assert read_header(data, LIMIT).size_wh in (None, photo.size_wh)
    return photo


def tiff(samples: Array, **options: Any) -> bytes:
    """Write an array (H, W, samples), or (H, W), as one page."""
    file = io.BytesIO()
    if options.get("planarconfig") == "separate":
        samples = np.moveaxis(samples, -1, 0)
    tifffile.imwrite(file, samples, metadata=None, **options)
    return file.getvalue()


def scene(dtype: str, samples: int, seed: int = 0) -> Array:
    """Return values over the depth's range, negative ones included, with an edge that is no multiple of a tile."""
    dice = np.random.default_rng(seed)
    shape = (19, 37, samples)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return dice.uniform(-3, 5, shape).astype(kind)
    ends = np.iinfo(kind)
    return dice.integers(ends.min, ends.max, shape, kind, endpoint=True)


def assert_shows(photo: Photo, expected: npt.NDArray[np.float64]) -> None:
    """Compare with the exact values, of which each pixel is the nearest whole number."""
    if expected.shape[2] == 1:
        expected = expected.repeat(3, axis=2)
    assert photo.pixels.shape == expected.shape
    assert np.abs(photo.pixels - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_depth_kind_and_layout_is_decoded_as_it_was_written(dtype: str, compression: str | None) -> None:
    layouts = itertools.product("<>", ("contig", "separate"), (None, (16, 32)), (False, True))
    for (photometric, samples), (order, planar, tile, predictor) in itertools.product(KINDS, list(layouts)):
        if predictor and (compression in (None, "packbits") or dtype in ("u8", "i8")):
            continue  # tifffile does not write these
        if compression == "lzma" and (order, predictor, samples) not in (("<", False, 3), (">", True, 1)):
            continue  # by far the slowest to write
        values = scene(dtype, samples)
        extra = ["unspecified"] * (samples - (3 if photometric == "rgb" else 1))
        data = tiff(
            values if samples > 1 else values[..., 0],
            photometric=photometric,
            planarconfig=planar if samples > 1 else None,
            byteorder=order,
            tile=tile,
            rowsperstrip=7 if tile is None else None,
            compression=compression,
            predictor=predictor,
            extrasamples=extra or None,
        )

        photo = decoded(data)

        colours = values[..., :3] if samples >= 3 else values[..., :1]
        assert_shows(photo, shown(colours, min_is_white=photometric == "miniswhite"))
        low, high = range_shown(colours)
        assert photo.values == (None if dtype == "u1" else ValueRange(low, high, _is_stretched(dtype, low, high)))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1, 2])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_samples_of_any_number_of_bits_are_unpacked_and_their_depth_names_white(
    bits: int, order: str, photometric: int, fill_order: int
) -> None:
    samples = 3 if photometric == 2 else 1
    values = np.random.default_rng(bits).integers(0, 2**bits, (11, 13, samples))
    values[0, 0] = 0
    strip = packed(values.reshape(11, -1), bits)
    if fill_order == 2:
        strip = bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip)
    tags = picture_tags((13, 11), photometric, [bits] * samples, t266=fill_order)

    photo = decoded(tiff_bytes([(tags, [strip])], order=order))

    assert_shows(photo, shown(values, bits=bits, min_is_white=photometric == 0))
    assert photo.values == (None if bits <= 8 else ValueRange(0, 2**bits - 1, False))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f4"])
@pytest.mark.parametrize("premultiplied", [False, True])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_what_is_transparent_is_white(dtype: str, premultiplied: bool, planar: str, photometric: str) -> None:
    top = 1.0 if dtype == "f4" else float(np.iinfo(dtype).max)
    colours, alpha = np.random.default_rng(3).uniform(0, 1, (19, 37, 3)), np.linspace(0, 1, 37).reshape(1, 37, 1)
    colours[0, -1] = 1
    alpha = np.broadcast_to(alpha, (19, 37, 1))
    stored = np.concatenate([colours * alpha if premultiplied else colours, alpha], axis=2) * top
    kind = "assocalpha" if premultiplied else "unassalpha"
    extra = [kind] if photometric == "rgb" else ["unspecified", "unspecified", kind]
    data = tiff(stored.astype(dtype), photometric=photometric, planarconfig=planar, extrasamples=extra)

    photo = decoded(data)

    assert np.abs(photo.pixels - 255 * (colours * alpha + (1 - alpha))).max() <= 2


def test_grey_with_alpha_is_laid_on_white_and_a_band_of_another_kind_is_left_out() -> None:
    grey, other = np.full((4, 4), 100, np.uint8), np.zeros((4, 4), np.uint8)
    stored = np.stack([grey, other], axis=2)
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}

    assert decoded(tiff(stored, extrasamples=["unassalpha"], **options)).pixels[0, 0].tolist() == [255] * 3
    assert decoded(tiff(stored, extrasamples=["unspecified"], **options)).pixels[0, 0].tolist() == [100] * 3


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("writers_bits", [8, 16])
def test_a_palette_is_looked_up(bits: int, writers_bits: int) -> None:
    dice = np.random.default_rng(bits)
    palette = dice.integers(0, 256, (2**bits, 3))
    indices = dice.integers(0, 2**bits, (11, 13))
    entries = palette if writers_bits == 8 else palette * 257
    tags = dict(picture_tags((13, 11), 3, [bits])) | {320: (SHORT, entries.T.ravel().tolist())}

    photo = decoded(tiff_bytes([(tags, [packed(indices, bits)])], order=">"))

    assert np.array_equal(photo.pixels, palette[indices])
    assert photo.values is None


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_inks_become_colours(dtype: str, planar: str) -> None:
    inks = np.random.default_rng(1).integers(0, 256, (19, 37, 4), dtype=np.uint8)
    stored = inks if dtype == "u1" else inks.astype("u2") * 257

    photo = decoded(tiff(stored, photometric="separated", planarconfig=planar))

    assert np.array_equal(photo.pixels, np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("compression", [1, 5, 8])
def test_ycbcr_that_is_no_jpeg_is_decoded_as_by_libtiff(subsampling: tuple[int, int], compression: int) -> None:
    across, down = subsampling
    dice = np.random.default_rng(4)
    # Whole units of pixels, two strips of which the second is shorter.
    units = dice.integers(16, 235, (5, 6, across * down + 2), dtype=np.uint8)
    strips = [units[:3].tobytes(), units[3:].tobytes()]
    if compression != 1:
        encode = {5: tifffile.TIFF.COMPRESSORS[5], 8: tifffile.TIFF.COMPRESSORS[8]}[compression]
        strips = [encode(strip) for strip in strips]
    tags = dict(picture_tags((6 * across - across // 2, 5 * down), 6, [8, 8, 8], t278=3 * down))
    tags |= {259: (SHORT, [compression]), 530: (SHORT, [across, down])}

    data = tiff_bytes([(tags, strips)])

    with Image.open(io.BytesIO(data)) as image:
        libtiffs = np.asarray(image.convert("RGB")).astype(int)
    if compression == 1:
        # Pillow itself reads files without compression, and knows no subsampling: LZW's pixels are the reference.
        lzw = [tifffile.TIFF.COMPRESSORS[5](strip) for strip in strips]
        with Image.open(io.BytesIO(tiff_bytes([(tags | {259: (SHORT, [5])}, lzw)]))) as image:
            libtiffs = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decoded(data).pixels - libtiffs).max() <= 2


@pytest.mark.parametrize(
    ("compression", "photometric", "samples", "dtype"),
    [
        *(("jpeg", kind, samples, "u1") for kind, samples in (("minisblack", 1), ("rgb", 3), ("ycbcr", 3))),
        *(("webp", "rgb", samples, "u1") for samples in (3, 4)),
        *(("jpeg2000", kind, samples, "u1") for kind, samples in (("minisblack", 1), ("rgb", 3))),
        *(("jpegxl", kind, samples, "u1") for kind, samples in (("minisblack", 1), ("rgb", 3))),
        ("jpeg2000", "rgb", 3, "u2"),
        *(("lerc", "minisblack", 1, dtype) for dtype in ("u1", "u2", "f4")),
    ],
)
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_files_compressed_as_pictures_are_those_that_tifffile_reads(
    compression: str, photometric: str, samples: int, dtype: str, tile: tuple[int, int] | None
) -> None:
    y, x = np.mgrid[0:60, 0:90]
    smooth = np.stack([x * 2, y * 3, 255 - x, np.full_like(x, 255)], axis=2)[..., :samples]
    stored = (smooth if dtype == "u1" else smooth * 257.0).astype(dtype)
    planar = "contig" if samples > 1 else None
    data = tiff(
        stored if samples > 1 else stored[..., 0],
        photometric=photometric,
        compression=compression,
        tile=tile,
        planarconfig=planar,
    )

    photo = decoded(data)

    read = tifffile.imread(io.BytesIO(data)).reshape(60, 90, -1)
    assert_shows(photo, shown(read[..., :3]))
    if photometric == "ycbcr":  # tifffile took the colours for YCbCr
        smooth = np.asarray(Image.fromarray(smooth.astype(np.uint8), "YCbCr").convert("RGB"))
    assert np.abs(photo.pixels - smooth[..., :3].astype(float)).mean() < 3


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_fax_compressions_are_decoded(compression: str) -> None:
    bits = Image.linear_gradient("L").resize((100, 60)).convert("1")

    photo = decoded(written(bits, "TIFF", compression=compression))

    assert np.array_equal(photo.pixels[..., 0], np.asarray(bits.convert("L")))


@pytest.mark.parametrize(
    ("values", "ends", "stretched"),
    [
        ([0, 1000, 4095], (0, 4095), True),
        ([0, 1000, 4096], (0, 8191), True),
        ([0, 255], (0, 255), True),
        ([0, 40000], (0, 65535), False),
        ([5, 5], (0, 7), True),
        ([0, 0], (0, 1), True),
    ],
)
def test_the_white_of_16_bits_is_the_smallest_depth_that_holds_them(
    values: list[int], ends: tuple[int, int], stretched: bool
) -> None:
    for data in (
        tiff(np.array([values], np.uint16), photometric="minisblack"),
        written(Image.fromarray(np.array([values], np.uint16)), "PNG"),
    ):
        photo = decode_photo(data, LIMIT)

        assert photo.values == ValueRange(*ends, stretched)
        assert photo.pixels[0, :, 0].tolist() == [round(255 * value / ends[1]) for value in values]


@pytest.mark.parametrize(
    ("values", "ends", "pixels"),
    [
        ([0.0, 0.5, 1.0], (0, 1), [0, 128, 255]),
        ([0.0, 0.1, 0.2], (0, 0.25), [0, 102, 204]),
        ([0.0, 1.5], (0, 3), [0, 128]),
        ([-4.0, 0.0, 4.0], (-4, 4), [0, 128, 255]),
        ([float("nan"), -2.0, 2.0], (-2, 2), [0, 0, 255]),
        ([float("-inf"), 0.0, 1.0, float("inf")], (0, 1), [0, 0, 255, 255]),
        ([float("nan")], (0, 1), [0]),
        ([-1e308, 1e308], (-1e308, 1e308), [0, 255]),
        ([1e308], (0, 1e308), [255]),
    ],
)
def test_floats_are_shown_from_black_to_the_white_that_they_reach(
    values: list[float], ends: tuple[float, float], pixels: list[int]
) -> None:
    photo = decoded(tiff(np.array([values]), photometric="minisblack"))

    assert photo.pixels[0, :, 0].tolist() == pixels
    assert photo.values is not None
    if abs(ends[1]) < 1e300:
        assert (photo.values.low, photo.values.high) == ends


@pytest.mark.parametrize(
    ("dtype", "no_data", "values", "pixels"),
    [
        ("f4", "-9999", [-9999, 0, 0.5, 1], [0, 0, 128, 255]),
        ("f4", "-3.4028234663852886e+38", [-3.4028234663852886e38, 0, 0.5, 1], [0, 0, 128, 255]),
        ("f8", "-1.7976931348623157e+308", [-1.7976931348623157e308, 0, 0.5, 1], [0, 0, 128, 255]),
        ("f4", "nan", [float("nan"), 0, 0.5, 1], [0, 0, 128, 255]),
        ("i2", "-32768", [-32768, 0, 64, 127], [0, 0, 129, 255]),
        ("u2", "65535", [65535, 0, 2048, 4095], [0, 0, 128, 255]),
        ("u2", "-9999", [0, 4095], [0, 255]),
        ("u2", "none", [0, 4095], [0, 255]),
    ],
)
def test_what_a_file_declares_as_no_data_does_not_count_and_is_black(
    dtype: str, no_data: str, values: list[float], pixels: list[int]
) -> None:
    stored = np.array([values], np.float64).astype(dtype)

    photo = decoded(tiff(stored, photometric="minisblack", extratags=[(42113, "s", 0, no_data, True)]))

    assert photo.pixels[0, :, 0].tolist() == pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_the_orientation_is_applied_block_by_block(orientation: int, tile: tuple[int, int] | None) -> None:
    noise = scene("u1", 3)
    transposed = noise.transpose(1, 0, 2)
    stored = {
        1: noise,
        2: noise[:, ::-1],
        3: noise[::-1, ::-1],
        4: noise[::-1],
        5: transposed,
        6: transposed[::-1],
        7: transposed[::-1, ::-1],
        8: transposed[:, ::-1],
    }[orientation]
    tags = [(274, 3, 1, orientation, True)]
    rows = None if tile else 5
    data = tiff(np.ascontiguousarray(stored), photometric="rgb", tile=tile, rowsperstrip=rows, extratags=tags)

    assert np.array_equal(decoded(data).pixels, noise)


def test_blocks_that_gdal_left_out_are_black() -> None:
    data = bytearray(tiff(np.full((32, 16), 200, np.uint8), photometric="minisblack", tile=(16, 16)))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        for name in ("TileOffsets", "TileByteCounts"):
            size = tags[name].valuebytecount // 2
            start = tags[name].valueoffset + size
            data[start : start + size] = bytes(size)

    photo = decoded(bytes(data))

    assert photo.pixels[15, 0].tolist() == [200] * 3
    assert photo.pixels[16:].max() == 0


@pytest.mark.parametrize("compression", [1, 5, 8, 32773, 34925, 50000])
@pytest.mark.parametrize("photometric", [1, 6])
def test_a_last_strip_may_hold_more_rows_than_the_picture(compression: int, photometric: int) -> None:
    bits = [8] * (3 if photometric == 6 else 1)
    rows = np.random.default_rng(5).integers(16, 235, (12, 10, len(bits)), dtype=np.uint8)
    encode = tifffile.TIFF.COMPRESSORS[compression] if compression != 1 else bytes
    strips = [encode(rows[top : top + 6].tobytes()) for top in (0, 6)]
    tags = dict(picture_tags((10, 8), photometric, bits, t278=6))
    whole = dict(picture_tags((10, 12), photometric, bits, t278=6))
    more = {259: (SHORT, [compression]), 530: (SHORT, [1, 1])}

    photo = decoded(tiff_bytes([(tags | more, strips)]))

    assert np.array_equal(photo.pixels, decoded(tiff_bytes([(whole | more, strips)])).pixels[:8])


THUMBNAIL = (picture_tags((4, 3), 2, [8, 8, 8], t254=1), [bytes(36)])
PICTURE = (picture_tags((64, 48), 2, [8, 8, 8], t254=0), [corners().tobytes()])
RAW = (picture_tags((64, 48), 32803, [16], t254=0), [bytes(64 * 48 * 2)])


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_before_the_picture_is_passed_over(order: str) -> None:
    for directories, below in (
        ([THUMBNAIL, PICTURE], 1),
        ([THUMBNAIL, THUMBNAIL, PICTURE], 2),
        ([THUMBNAIL, PICTURE], 0),
        ([PICTURE, THUMBNAIL], 0),
        ([PICTURE, THUMBNAIL], 1),
    ):
        photo = decoded(tiff_bytes(directories, order=order, below=below))

        assert photo.size_wh == (64, 48)
        assert quarters(photo) == UPRIGHT


def test_a_picture_below_a_thumbnail_has_the_orientation_of_the_file() -> None:
    thumbnail = (dict(THUMBNAIL[0]) | {274: (SHORT, [3])}, THUMBNAIL[1])
    turned = (PICTURE[0], [corners().rotate(180).tobytes()])

    assert quarters(decoded(tiff_bytes([thumbnail, turned], below=1))) == UPRIGHT


def test_a_file_of_nothing_but_reduced_images_is_decoded() -> None:
    assert decoded(tiff_bytes([THUMBNAIL])).size_wh == (4, 3)


def test_a_picture_below_the_thumbnail_is_too_large_as_any_other() -> None:
    data = tiff_bytes([THUMBNAIL, PICTURE], below=1)

    assert read_header(data, 64 * 48 - 1).size_wh is None
    assert fault_of(data, 64 * 48 - 1).code == "image_too_large"


def _tags(photometric: int, bits: list[int], **more: int) -> bytes:
    return tiff_bytes([(picture_tags((8, 8), photometric, bits, **more), [bytes(8 * 8 * 16)])])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (tiff_bytes([THUMBNAIL, RAW], below=1), "camera raw"),
        (tiff_bytes([RAW]), "camera raw"),
        (_tags(34892, [16] * 3), "camera raw"),
        (_tags(8, [8] * 3), "CIELAB"),
        (_tags(32845, [16] * 3), "LOGLUV"),
        (_tags(1, [64], t339=6), "complex"),
        (_tags(1, [17], t339=3), "floating-point samples of 17 bits"),
        (_tags(1, [24]), "unsigned samples of 24 bits"),
        (_tags(1, [12], t339=2), "signed samples of 12 bits"),
        (_tags(1, [8, 16]), "different depths"),
        (_tags(2, [5, 6, 5]), "different depths"),
        (_tags(2, [8]), "1 samples for each pixel, where rgb needs 3"),
        (_tags(5, [8] * 3), "3 samples for each pixel, where cmyk needs 4"),
        (_tags(5, [8] * 4, t332=2), "inks"),
        (_tags(6, [16] * 3), "YCbCr"),
        (_tags(1, [16], t32997=4), "volume"),
        (_tags(1, [8], t259=34934), "JPEGXR"),
        (_tags(1, [8], t259=4711), "4711"),
        (_tags(1, [12], t259=5, t317=2), "predictor 2"),
        (_tags(1, [32], t259=5, t317=3), "predictor 3"),
        (_tags(1, [32], t259=5, t317=7), "predictor 7"),
    ],
)
def test_what_is_not_decoded_is_named_and_comes_with_advice(data: bytes, named: str) -> None:
    fault = fault_of(data)

    assert fault.code == "image_unsupported"
    assert named in fault.detail
    assert "Save it" in fault.detail or "Save the slice" in fault.detail or "Export it" in fault.detail


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ({256: (LONG, [2**31]), 257: (LONG, [2**31])}, "image_too_large"),
        ({256: (LONG, [0])}, "image_corrupt"),
        ({257: (LONG, [10**6 // 64 - 1])}, "image_corrupt"),
        ({278: (LONG, [0])}, "image_corrupt"),
        ({278: (LONG, [1])}, "image_corrupt"),
        ({277: (SHORT, [3, 3])}, "image_corrupt"),
        ({284: (SHORT, [1, 1])}, "image_corrupt"),
        ({330: (LONG, [8]), 254: (LONG, [1])}, "image_corrupt"),
        ({258: (SHORT, [16, 16, 16])}, "image_corrupt"),
        ({259: (SHORT, [5])}, "image_corrupt"),
        ({259: (SHORT, [8])}, "image_corrupt"),
        ({262: (SHORT, [3])}, "image_corrupt"),
    ],
)
def test_tags_that_lie_are_refused(lie: dict[int, tuple[int, list[int]]], code: str) -> None:
    assert fault_of(tiff_bytes([(dict(PICTURE[0]) | lie, PICTURE[1])])).code == code


def test_a_file_without_a_kind_of_colours_is_read_as_libtiff_guesses() -> None:
    tags = {tag: value for tag, value in PICTURE[0].items() if tag != 262}

    assert quarters(decoded(tiff_bytes([(tags, PICTURE[1])]))) == UPRIGHT


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.tif")))
def test_files_that_people_reported_to_other_projects_are_decoded(name: str) -> None:
    reference = "reference_grey.png" if "grey" in name else "reference_rgb.png"

    photo = decoded((CASES / name).read_bytes())

    assert np.array_equal(photo.pixels, decode_photo((CASES / reference).read_bytes(), LIMIT).pixels)
    assert (photo.values is not None and photo.values.stretched) == (name == "grey_12bit_in_16bit.tif")


def test_a_refusal_is_an_error_of_the_caller() -> None:
    with pytest.raises(InvalidImage, match="image_unsupported"):
        decode_photo(tiff_bytes([RAW]), LIMIT)


def _is_stretched(dtype: str, low: float, high: float) -> bool:
    kind = np.dtype(dtype)
    whole = (0, 1) if kind.kind == "f" else (float(np.iinfo(kind).min), float(np.iinfo(kind).max))
    return (low, high) != whole
