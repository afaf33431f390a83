"""Where an image lies on a map: a transform from its pixels, and a CRS in GeoTIFF's own words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: (a, b, c, d, e, f): x = a · column + b · row + c, and y = d · column + e · row + f.
Transform = tuple[float, float, float, float, float, float]
#: A key's value: a whole number of 16 bits, or some; some doubles; a text.
KeyValue = int | str | tuple[int, ...] | tuple[float, ...]
GeoKeys = tuple[tuple[int, KeyValue], ...]

#: Keys of what coordinates are, of whether they are those of a pixel's corner or of its middle, and of the CRS by its
#: EPSG code.  Source: OGC GeoTIFF 1.1 (19-008r4), 7.
MODEL_TYPE, RASTER_TYPE, GEODETIC_CRS, PROJECTED_CRS = 1024, 1025, 2048, 3072
_PROJECTED = 1
#: EPSG's codes; 32767 is "user-defined", and what is above is private.
_EPSG_CODES = range(1024, 32767)
#: The keys as JSON: the definition of a CRS without a code takes some 700 characters.
MAX_KEYS_JSON = 2000
#: A pixel must be so many times larger than what a double can tell apart at the image's corners.
_LEAST_STEPS = 2**10
MAX_NOTE = 300


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where an image lies on a map.

    transform: from pixels of the upright image to the map, (0, 0) being the outer corner of the first pixel; None if
    the file has none that can be used.  geo_keys: the CRS as GeoTIFF's keys, whose raster type is "area".  note: what
    was left out, and why; empty if nothing was.
    """

    transform: Transform | None = None
    geo_keys: GeoKeys = ()
    note: str = ""

    @property
    def epsg(self) -> int | None:
        """The EPSG code of the CRS; None for one that has none, or that is not known."""
        keys = dict(self.geo_keys)
        model = keys.get(MODEL_TYPE)
        if model is None:
            holders: tuple[int, ...] = (PROJECTED_CRS, GEODETIC_CRS)
        else:
            holders = (PROJECTED_CRS,) if model == _PROJECTED else (GEODETIC_CRS,)
        codes = (keys.get(holder) for holder in holders)
        return next((code for code in codes if isinstance(code, int) and code in _EPSG_CODES), None)


def checked(document: Any, size_wh: tuple[int, int]) -> Georeference:  # Any: JSON
    """Return a georeference from what another process says of it.  Raises ValueError."""
    try:
        numbers, keys = document["transform"], document["geo_keys"]
        transform = None if numbers is None else as_transform(list(map(float, numbers)))
        georeference = Georeference(
            transform=transform,
            geo_keys=tuple((as_short(key), _key_value(value)) for key, value in keys),
            note=str(document["note"])[:MAX_NOTE],
        )
    except (TypeError, LookupError, OverflowError) as error:
        raise ValueError("no georeference") from error
    if transform is not None:
        check_transform(transform, size_wh)
    if len(keys_as_json(dict(georeference.geo_keys))) > MAX_KEYS_JSON:
        raise ValueError("too many keys")
    return georeference


def check_transform(transform: Transform, size_wh: tuple[int, int]) -> None:
    """Raise ValueError for a transform that gives the pixels of an image of this size no distinct places."""
    a, b, c, d, e, f = transform
    width, height = size_wh
    xs = [a * x + b * y + c for x in (0, width) for y in (0, height)]
    ys = [d * x + e * y + f for x in (0, width) for y in (0, height)]
    if not all(map(math.isfinite, (*transform, *xs, *ys))):
        raise ValueError("its numbers are too large, or none")
    across, down = math.hypot(a, d), math.hypot(b, e)
    if across == 0 or down == 0 or not math.isfinite(across * down):
        raise ValueError("its pixels have no size")
    # As unit vectors, whose product neither over- nor underflows
    if abs(a / across * (e / down) - b / down * (d / across)) < 1e-6:
        raise ValueError("its rows and columns run in the same direction")
    if min(across, down) < _LEAST_STEPS * max(map(math.ulp, (*xs, *ys))):
        raise ValueError("its pixels are too small for their coordinates")


def keys_as_json(geo_keys: Mapping[int, KeyValue]) -> str:
    return json.dumps(geo_keys)


def as_transform(numbers: list[float]) -> Transform:
    """Return six numbers.  Raises ValueError for another count."""
    a, b, c, d, e, f = numbers
    return a, b, c, d, e, f


def as_short(value: Any) -> int:  # Any: whatever a tag holds
    """Return a whole number of 16 bits.  Raises ValueError for anything else."""
    if not isinstance(value, int) or value not in range(2**16):
        raise ValueError("they are no whole numbers of 16 bits")
    return value


def in_ascii(text: str) -> str:
    """Return a key's text without its terminators, in printable ASCII."""
    return "".join(char if " " <= char <= "~" else "?" for char in text.rstrip("\0|"))


def _key_value(value: Any) -> KeyValue:  # Any: JSON
    match value:
        case int():
            return as_short(value)
        case str():
            return in_ascii(value)
        case list() if value and all(isinstance(each, int) for each in value):
            return tuple(map(as_short, value))
        case list() if value:
            return tuple(map(_finite, value))
    raise ValueError("a key has no value")


def _finite(value: Any) -> float:  # Any: JSON
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a number")
    return number
