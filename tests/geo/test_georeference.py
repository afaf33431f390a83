"""GDAL agrees: on where a GeoTIFF lies, on the label map that is written, and on the outlines."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.io import MemoryFile
from rasterio.transform import Affine, xy

from maskfleet.worker.image.decode import decode_photo
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.output.labels import MAX_LABELS
from tests.worker.test_georeference import (
    MATRIX,
    OWN,
    SCALE,
    TIE,
    UTM_33,
    UTM_33_POINT,
    WGS_84,
    files_of,
    georeference_of,
    geotiff,
)
from tests.worker.test_outlines import masks_of_every_kind

TURNED = Affine(8.0, 5.0, 400_000.0, 5.0, -8.0, 5_650_000.0)
NORTH_UP = Affine(0.3, 0.0, 402_311.7, 0.0, -0.3, 5_655_123.4)
SOUTH_UP = Affine(0.3, 0.0, 402_311.7, 0.0, 0.3, 5_655_123.4)
DEGREES = Affine(1 / 3600, 0.0, 13.7, 0.0, -1 / 3600, 51.05)
#: A Lambert projection of one's own, without a code.
LAMBERT = CRS.from_proj4("+proj=lcc +lat_1=49 +lat_2=46 +lat_0=47.5 +lon_0=13.3 +x_0=4e5 +y_0=4e5 +ellps=bessel")


def by_rasterio(crs: CRS | None, transform: Affine, **options: Any) -> bytes:
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=10, height=8, count=3, dtype="uint8", crs=crs, transform=transform, **options
        ) as file:
            file.write(np.full((3, 8, 10), 90, np.uint8))
        data: bytes = memory.read()
        return data


def opened(data: bytes) -> Any:  # Any: rasterio has no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return MemoryFile(data).open()


FILES = {
    "utm": by_rasterio(CRS.from_epsg(32633), NORTH_UP),
    "turned": by_rasterio(CRS.from_epsg(32633), TURNED),
    "south-up": by_rasterio(CRS.from_epsg(32633), SOUTH_UP),
    "degrees": by_rasterio(CRS.from_epsg(4326), DEGREES),
    "own-crs": by_rasterio(LAMBERT, NORTH_UP),
    "compound-crs": by_rasterio(CRS.from_user_input("EPSG:25833+7837"), NORTH_UP),
    "no-crs": by_rasterio(None, NORTH_UP),
    "big-endian-bigtiff": by_rasterio(CRS.from_epsg(25833), NORTH_UP, ENDIANNESS="BIG", BIGTIFF="YES"),
    "middles": geotiff(t33550=SCALE, t33922=TIE, t34735=UTM_33_POINT),
    "matrix-of-middles": geotiff(t34264=MATRIX, t34735=UTM_33_POINT),
    "tied-elsewhere": geotiff(t33550=SCALE, t33922=(3.0, 2.0, 0.0, *TIE[3:]), t34735=UTM_33),
    "negative-scale": geotiff(t33550=(10.0, -10.0, 0.0), t33922=TIE, t34735=UTM_33),
    "both": geotiff(t33550=SCALE, t33922=TIE, t34264=MATRIX, t34735=UTM_33),
    "geographic": geotiff(t33550=(0.001, 0.001, 0.0), t33922=(0.0, 0.0, 0.0, 13.7, 51.0, 0.0), t34735=WGS_84),
    "mercator-of-ones-own": geotiff(
        t33550=SCALE, t33922=TIE, t34735=OWN, t34736=(6_378_137.0, 298.25, 12.5), t34737="My own||"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_lies_where_gdal_says(name: str) -> None:
    georeference = georeference_of(FILES[name])

    with opened(FILES[name]) as file:
        assert georeference.transform == pytest.approx(tuple(file.transform)[:6], rel=1e-15)
        assert georeference.note == ""
        if name not in ("own-crs", "mercator-of-ones-own", "compound-crs"):
            assert georeference.epsg == (file.crs.to_epsg() if file.crs else None)


def test_a_compound_crs_is_known_by_its_horizontal_part() -> None:
    assert georeference_of(FILES["compound-crs"]).epsg == 25833


@pytest.mark.parametrize("name", FILES)
def test_gdal_reads_the_label_map_in_the_same_place_with_the_same_crs(name: str) -> None:
    segmentation = masks_of_every_kind()

    files = files_of(georeference_of(FILES[name]), segmentation)

    with opened(files["label_map.tif"]) as labels, opened(FILES[name]) as image:
        assert tuple(labels.transform) == pytest.approx(tuple(image.transform), rel=1e-15)
        assert labels.crs == image.crs
        assert (labels.dtypes, labels.nodata, labels.compression.name) == (("uint16",), 0, "deflate")
        with opened(files["label_map.png"]) as png:
            assert (labels.read() == png.read()).all()
        assert np.iinfo(labels.dtypes[0]).max == MAX_LABELS


@pytest.mark.parametrize("name", FILES)
def test_gdal_fills_the_outlines_to_the_masks_pixels(name: str) -> None:
    segmentation = masks_of_every_kind()

    outlines = json.loads(files_of(georeference_of(FILES[name]), segmentation)["outlines.geojson"])

    with opened(FILES[name]) as image:
        for feature, mask in zip(outlines["features"], segmentation.masks, strict=True):
            if feature["geometry"] is None:
                assert mask.area == 0
                continue
            filled = rasterize([feature["geometry"]], out_shape=(8, 10), transform=image.transform)
            assert (filled.astype(bool) == decode_mask(mask)).all()
        if outlines["crs"] and name != "compound-crs":
            urn = outlines["crs"]["properties"]["name"]
            assert CRS.from_user_input(urn).to_authority() in (image.crs.to_authority(), ("OGC", "CRS84"))


def test_a_pixel_is_where_rasterio_says() -> None:
    georeference = georeference_of(FILES["turned"])
    assert georeference.transform is not None
    a, b, c, d, e, f = georeference.transform

    with opened(FILES["turned"]) as file:
        assert xy(file.transform, 6, 4) == pytest.approx((a * 4.5 + b * 6.5 + c, d * 4.5 + e * 6.5 + f), rel=1e-15)


def test_a_file_that_gdal_finds_no_place_for_has_none_here() -> None:
    data = geotiff(t33550=(0.0, 0.0, 0.0), t33922=TIE)

    assert georeference_of(data).transform is None
    with opened(data) as file:
        assert file.transform == Affine.identity()


def test_what_was_decoded_is_what_gdal_reads() -> None:
    pixels = np.arange(240, dtype=np.uint8).reshape(3, 8, 10)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=10, height=8, count=3, dtype="uint8", crs=CRS.from_epsg(32633), transform=NORTH_UP
        ) as file:
            file.write(pixels)
        photo = decode_photo(memory.read(), 1000)

    assert (np.moveaxis(photo.pixels, -1, 0) == pixels).all()
