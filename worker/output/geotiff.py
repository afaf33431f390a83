"""A label map as a GeoTIFF, for programs that lay it on a map.

Sources: OGC GeoTIFF 1.1 (19-008r4), 7.1; GDAL's GTiff driver, for GDAL_NODATA.
"""

from __future__ import annotations

import io
from typing import Any

import tifffile

from maskfleet.worker.image.geo_tags import (
    ASCII_PARAMS,
    DOUBLE_PARAMS,
    KEY_DIRECTORY,
    PIXEL_SCALE,
    TIE_POINTS,
    TRANSFORMATION,
)
from maskfleet.worker.image.georeference import GeoKeys, Transform
from maskfleet.worker.output.painting import Labels

#: As GDAL's own "cloud-optimized" files: a viewer reads the tiles that it shows.
_TILE = (256, 256)
_LEVEL = 6
#: The first of the keys of a vertical CRS.
_VERTICAL = 4096
_NO_DATA, _SHORT, _DOUBLE, _ASCII = 42113, 3, 12, 2
#: A tag for tifffile: its number, type, count, value, and that it goes on the first page.
_Tag = tuple[int, int, int, Any, bool]  # Any: as tifffile takes it


def label_map_geotiff(labels: Labels, transform: Transform, geo_keys: GeoKeys) -> bytes:
    """Return labels (H, W), in a PNG's order of bytes, as a compressed GeoTIFF of 16 bits.

    0, the background, is declared to be no data.
    """
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        labels.view(">u2"),
        byteorder=">",
        photometric="minisblack",
        tile=_TILE,
        compression="zlib",
        compressionargs={"level": _LEVEL},
        metadata=None,
        software=False,
        maxworkers=1,
        extratags=[*_place(transform), *_keys(geo_keys), (_NO_DATA, _ASCII, 0, "0", True)],
    )
    return file.getvalue()


def _place(transform: Transform) -> list[_Tag]:
    a, b, c, d, e, f = transform
    if b == d == 0 and a > 0 > e:  # north is up
        return [
            (PIXEL_SCALE, _DOUBLE, 3, (a, -e, 0.0), True),
            (TIE_POINTS, _DOUBLE, 6, (0.0, 0.0, 0.0, c, f, 0.0), True),
        ]
    matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    return [(TRANSFORMATION, _DOUBLE, 16, matrix, True)]


def _keys(geo_keys: GeoKeys) -> list[_Tag]:
    if not geo_keys:
        return []
    count = len(geo_keys)
    # Of files of GeoTIFF 1.0, GDAL leaves a vertical CRS out.
    directory = [1, 1, int(any(key >= _VERTICAL for key, _ in geo_keys)), count]
    numbers: list[int] = []
    doubles: list[float] = []
    texts = ""
    for key, value in geo_keys:
        if isinstance(value, int):
            directory += (key, 0, 1, value)
        elif isinstance(value, str):
            directory += (key, ASCII_PARAMS, len(value) + 1, len(texts))
            texts += f"{value}|"
        elif all(isinstance(number, int) for number in value):
            directory += (key, KEY_DIRECTORY, len(value), 4 + 4 * count + len(numbers))
            numbers += (int(number) for number in value)
        else:
            directory += (key, DOUBLE_PARAMS, len(value), len(doubles))
            doubles += value
    directory += numbers
    tags: list[_Tag] = [(KEY_DIRECTORY, _SHORT, len(directory), tuple(directory), True)]
    if doubles:
        tags.append((DOUBLE_PARAMS, _DOUBLE, len(doubles), tuple(doubles), True))
    if texts:
        tags.append((ASCII_PARAMS, _ASCII, 0, texts, True))
    return tags
