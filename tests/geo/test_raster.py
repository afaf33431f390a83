"""`maskfleet raster`: rasters in tiles, with the bundled model, in this process and through a server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from click.testing import CliRunner, Result
from PIL import Image
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine

from maskfleet.cli.main import main
from maskfleet.raster.layout import Box
from maskfleet.raster.source import Raster
from maskfleet.stack.process import StackLine
from maskfleet.worker.image.decode import decode_photo
from tests.geo.discs import DISCS, OVERLAP, PLACE, SIZE_WH, TILE, Discs, draw_discs
from tests.scenes import iou

Bools = npt.NDArray[np.bool_]
#: A disc's mask by the bundled model, which was trained on such scenes.
LEAST_IOU = 0.85


def raster(path: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["raster", str(path), "--out", str(out), "--points-per-crop", "12", *options])


def features_of(out: Path) -> list[Any]:
    features: list[Any] = json.loads((out / "outlines.geojson").read_bytes())["features"]
    return features


def found_in(out: Path, transform: Affine) -> list[tuple[Bools, Any]]:
    """Return the objects of outlines.geojson: their pixels, as GDAL fills the outlines, and their properties."""
    found = []
    for feature in features_of(out):
        pixels = rasterize([feature["geometry"]], out_shape=SIZE_WH[::-1], transform=transform).astype(bool)
        assert pixels.sum() == feature["properties"]["area"]
        found.append((pixels, feature["properties"]))
    return found


def assert_each_disc_is_there_once(discs: Discs, found: list[tuple[Bools, Any]]) -> None:
    for (_, _, radius), disc in zip(DISCS, discs.masks, strict=True):
        like = [(pixels, about) for pixels, about in found if iou(pixels, disc) > 0.5]
        assert len(like) == 1
        [(pixels, about)] = like
        assert iou(pixels, disc) > LEAST_IOU
        assert not about["cut_off"]
        assert (about["tiles"] == 1) == (2 * radius <= OVERLAP)


def test_each_disc_of_a_raster_appears_once_wherever_its_seams_are(tmp_path: Path) -> None:
    discs = draw_discs(tmp_path / "discs.tif")
    options = ("--here", "--tile", str(TILE), "--overlap", str(OVERLAP))

    first = raster(discs.path, tmp_path / "out", *options)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    again = raster(discs.path, tmp_path / "out", *options, "--json")

    assert first.exit_code == 0, first.output
    found = found_in(tmp_path / "out", PLACE)
    assert_each_disc_is_there_once(discs, found)
    assert all(about["map_area"] == about["area"] / 4 for _, about in found)
    with rasterio.open(tmp_path / "out" / "label_map.tif") as labels:
        assert (labels.transform, labels.crs, labels.dtypes, labels.nodata) == (
            PLACE,
            CRS.from_epsg(25833),
            ("uint16",),
            0,
        )
        shown = labels.read(1)
    expected = np.zeros(shown.shape, np.uint16)
    for number, (pixels, _) in sorted(enumerate(found, 1), key=lambda one: (-one[1][1]["area"], one[0])):
        expected[pixels] = number
    assert (shown == expected).all()
    # Nothing is done twice
    assert again.exit_code == 0
    assert "12 tiles of 12 had been done before." in again.output
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == files


def test_a_raster_without_a_place_goes_through_a_server_in_pixels(running_stack: StackLine, tmp_path: Path) -> None:
    discs = draw_discs(tmp_path / "discs.tif", transform=None, scale=200, dtype="uint16")
    server = ("--api-url", running_stack.api_url, "--api-key", running_stack.api_key)

    ran = raster(discs.path, tmp_path / "out", "--tile", "400", "--overlap", "110", *server)

    assert ran.exit_code == 0, ran.output
    document = json.loads((tmp_path / "out" / "outlines.geojson").read_bytes())
    assert "crs" not in document
    assert all("map_area" not in one["properties"] for one in document["features"])
    assert_each_disc_is_there_once(discs, found_in(tmp_path / "out", Affine.identity()))


def test_a_tile_that_fails_is_listed_and_the_rest_is_done(tmp_path: Path) -> None:
    """The raster shows nothing, so no tile needs a model; the data of one block are damaged."""
    path, out = tmp_path / "damaged.tif", tmp_path / "out"
    profile: dict[str, Any] = {"width": 512, "height": 256, "count": 1, "dtype": "uint8", "nodata": 0}
    with rasterio.open(
        path, "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, compress="lzw", **profile
    ) as file:
        file.write(np.zeros((1, 256, 512), np.uint8))
    data = bytearray(path.read_bytes())
    data[-20:] = b"\xff" * 20
    path.write_bytes(data)

    ran = raster(path, out, "--here", "--tile", "256", "--overlap", "0")

    assert ran.exit_code == 1
    assert "2 tiles failed; the same command tries them again:" in ran.output
    assert "image_corrupt" in ran.output
    assert features_of(out) == []


@pytest.mark.parametrize(
    ("dtype", "count", "options"),
    [
        ("uint8", 3, {}),
        ("uint8", 1, {}),
        ("uint16", 3, {}),
        ("int16", 5, {"nodata": -9999}),
        ("float32", 1, {"nodata": -9999.0}),
    ],
)
def test_a_raster_is_shown_as_a_job_shows_the_same_file(tmp_path: Path, dtype: str, count: int, options: Any) -> None:
    path = tmp_path / "raster.tif"
    dice = np.random.default_rng(2)
    samples = dice.uniform(-50 if dtype in ("int16", "float32") else 0, 250, (count, 40, 50))
    if options:
        samples[:, 5:9, :] = options["nodata"]
    with rasterio.open(path, "w", driver="GTiff", width=50, height=40, count=count, dtype=dtype, **options) as file:
        file.write(samples.astype(dtype))

    with Raster(path) as source:
        left, right = source.png(Box(0, 0, 30, 40)), source.png(Box(30, 0, 50, 40))

    assert left is not None
    assert right is not None
    parts = [np.asarray(Image.open(io.BytesIO(part))) for part in (left, right)]
    assert (np.concatenate(parts, axis=1) == decode_photo(path.read_bytes(), 10_000).pixels).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--overlap", "600"), "invalid_spec: --overlap: it may be up to 504 for tiles of 1024 pixels."),
        (("--bands", "7"), "invalid_spec: --bands takes one or three of the bands 1 to 3."),
        (("--bands", "red"), "invalid_spec: --bands: 'red' does not have the form 4,3,2."),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    discs = draw_discs(tmp_path / "discs.tif")

    ran = raster(discs.path, tmp_path / "out", "--here", *options)

    assert (ran.exit_code, ran.output.strip()) == (2, says)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_raster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no raster")

    gone, text = raster(tmp_path / "gone.tif", tmp_path), raster(tmp_path / "note.txt", tmp_path)

    assert gone.output.startswith("file_not_found: There is no file ")
    assert text.output.startswith("not_an_image: GDAL does not read ")
    assert gone.exit_code == text.exit_code == 2
