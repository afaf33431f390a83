"""What a GeoTIFF's tags say about the place of its picture on a map.

They describe the picture as it is stored, and are turned with it.  A georeference that is damaged, or of a kind that is
not read, never fails an image: it is left out, and a note says why.

Sources: OGC GeoTIFF 1.1 (19-008r4); GDAL's GTiff driver for files that depart from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskfleet.worker.image.georeference import (
    GEODETIC_CRS,
    MAX_KEYS_JSON,
    MAX_NOTE,
    MODEL_TYPE,
    PROJECTED_CRS,
    RASTER_TYPE,
    Georeference,
    KeyValue,
    Transform,
    as_short,
    check_transform,
    in_ascii,
    keys_as_json,
)
from maskfleet.worker.image.picture import Turn

PIXEL_SCALE, TIE_POINTS, TRANSFORMATION = 33550, 33922, 34264
KEY_DIRECTORY, DOUBLE_PARAMS, ASCII_PARAMS = 34735, 34736, 34737
GEO_TAGS = (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEY_DIRECTORY, DOUBLE_PARAMS, ASCII_PARAMS)
#: Raster types.
IS_AREA, _IS_POINT = 1, 2
_MAX_KEYS = 128


def georeference_of(tags: Mapping[int, Any], turn: Turn) -> Georeference | None:  # Any: whatever a tag holds
    """Return what the tags say, for the upright picture; None if there are none.

    tags: the values of those of GEO_TAGS that the file has.
    """
    if not tags:
        return None
    notes: list[str] = []
    geo_keys: dict[int, KeyValue] = {}
    transform: Transform | None = None
    try:
        geo_keys = _geo_keys(tags)
    except ValueError as error:
        notes.append(f"The file's GeoTIFF keys, and with them its CRS, were left out: {error}.")
    try:
        stored = _stored_transform(tags, is_point=geo_keys.get(RASTER_TYPE) == _IS_POINT)
        turned = _turned(stored, turn)
        check_transform(turned, turn.upright_wh)
        transform = turned
    except ValueError as error:
        notes.append(f"The file's place on the map was left out: {error}.")
    if geo_keys:
        geo_keys[RASTER_TYPE] = IS_AREA
    if len(keys_as_json(geo_keys)) > MAX_KEYS_JSON:
        notes.append("Of the file's CRS only the EPSG code was kept: its GeoTIFF keys are too long.")
        kept = (MODEL_TYPE, RASTER_TYPE, PROJECTED_CRS, GEODETIC_CRS)
        geo_keys = {key: value for key, value in geo_keys.items() if key in kept and isinstance(value, int)}
    return Georeference(transform, tuple(sorted(geo_keys.items())), " ".join(notes)[:MAX_NOTE])


def _stored_transform(tags: Mapping[int, Any], *, is_point: bool) -> Transform:
    """Return the transform of the picture as it is stored."""
    if PIXEL_SCALE not in tags and TRANSFORMATION not in tags:
        raise ValueError("it has control points instead of a scale" if TIE_POINTS in tags else "it has no scale")
    scale = _doubles(tags.get(PIXEL_SCALE))
    if len(scale) >= 2 and scale[0] and scale[1]:
        points = _doubles(tags.get(TIE_POINTS))
        if len(points) < 6:
            raise ValueError("it has a scale and no tie point")
        column, row, _, x, y, _ = points[:6]
        # Rows go south: a negative scale is a writer's mistake, as GDAL takes it.
        a, b, d, e = scale[0], 0.0, 0.0, -abs(scale[1])
        c, f = x - column * a, y - row * e
    else:
        matrix = _doubles(tags.get(TRANSFORMATION))
        if len(matrix) != 16:
            raise ValueError("its scale or transformation is damaged")
        a, b, _, c, d, e, _, f = matrix[:8]
    if is_point:  # the coordinates are those of the first pixel's middle
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return a, b, c, d, e, f


def _turned(transform: Transform, turn: Turn) -> Transform:
    """Return the transform of the upright picture from that of the stored one."""
    a, b, c, d, e, f = transform
    (xu, xv, x0), (yu, yv, y0) = turn.stored_from_upright
    west, north = a * x0 + b * y0 + c, d * x0 + e * y0 + f
    return a * xu + b * yu, a * xv + b * yv, west, d * xu + e * yu, d * xv + e * yv, north


def _geo_keys(tags: Mapping[int, Any]) -> dict[int, KeyValue]:
    """Return the keys with their values; none without a directory.  Source: GeoTIFF 1.1, 7.1."""
    if KEY_DIRECTORY not in tags:
        return {}
    directory = [as_short(number) for number in np.ravel(tags[KEY_DIRECTORY]).tolist()]
    if len(directory) < 4 or directory[0] != 1:
        raise ValueError("their directory is damaged, or of another version")
    count = directory[3]
    if count > _MAX_KEYS or 4 + 4 * count > len(directory):
        raise ValueError("their directory is damaged")
    keys: dict[int, KeyValue] = {}
    for at in range(4, 4 + 4 * count, 4):
        key, holder, length, value = directory[at : at + 4]
        if holder == 0:
            keys[key] = value
        elif holder == KEY_DIRECTORY:
            keys[key] = tuple(_part(directory, value, length))
        elif holder == DOUBLE_PARAMS:
            keys[key] = tuple(_part(_doubles(tags.get(DOUBLE_PARAMS)), value, length))
        elif holder == ASCII_PARAMS:
            text = _text(tags.get(ASCII_PARAMS))[value : value + length]
            if text:  # some writers leave the last terminator out, or count an empty text
                keys[key] = in_ascii(text)
        else:
            raise ValueError(f"one of them is in tag {holder}")
    return keys


def _part(values: list[Any], start: int, length: int) -> list[Any]:  # Any: of one kind
    part = values[start : start + length]
    if not part or len(part) < length:
        raise ValueError("one of them has no value")
    return part


def _text(value: Any) -> str:  # Any: as tifffile reads it
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise ValueError("their texts are none")
    return value


def _doubles(value: Any) -> list[float]:  # Any: as tifffile reads it
    try:
        numbers = np.ravel(np.asarray(() if value is None else value, np.float64)).tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its numbers are none") from error
    if not all(map(math.isfinite, numbers)):
        raise ValueError("its numbers are too large, or none")
    return [float(number) for number in numbers]
