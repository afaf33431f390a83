"""Pieces of masks as GeoJSON's geometries, in pixels or on a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maskfleet.worker.image.georeference import Transform
from maskfleet.worker.masks.polygons import Piece, Polygon

#: Map coordinates are rounded to a millionth of a pixel: nothing for a map, and half of the digits.
_DIGITS_OF_A_PIXEL = 6
_WGS_84 = 4326


@dataclass(frozen=True, slots=True)
class Place:
    """Where corners of pixels go.  transform: None for pixels' own coordinates.  digits: after the point."""

    transform: Transform | None = None
    digits: int = 0

    @classmethod
    def by(cls, transform: Transform) -> Place:
        """Return the place on a map."""
        a, b, _, d, e, _ = transform
        pixel = min(math.hypot(a, d), math.hypot(b, e))
        return cls(transform, max(0, _DIGITS_OF_A_PIXEL - math.floor(math.log10(pixel))))

    def ring(self, corners: Polygon) -> Sequence[tuple[float, float]]:
        """Return a ring's corners in their place, the first one at the end again, as GeoJSON wants it."""
        closed = list(zip((*corners[0::2], corners[0]), (*corners[1::2], corners[1]), strict=True))
        if self.transform is None:
            return closed
        a, b, c, d, e, f = self.transform
        placed = [(round(a * x + b * y + c, self.digits), round(d * x + e * y + f, self.digits)) for x, y in closed]
        # Outlines run counter-clockwise as numbers, and clockwise on a map whose y runs up while rows run down.
        return placed if a * e > b * d else placed[::-1]


PIXELS = Place()


def geometry_of(pieces: Sequence[Piece], place: Place) -> dict[str, object] | None:
    """Return a Polygon, or a MultiPolygon of several pieces; None of a mask without pixels."""
    rings = [[place.ring(ring) for ring in (piece.outline, *piece.holes)] for piece in pieces]
    if not rings:
        return None
    if len(rings) > 1:
        return {"type": "MultiPolygon", "coordinates": rings}
    return {"type": "Polygon", "coordinates": rings[0]}


def crs_member(epsg: int | None) -> dict[str, object] | None:
    """Return a GeoJSON collection's CRS; null says that none can be assumed.

    GeoJSON's coordinates are x and y, so longitude comes first: for WGS 84 that is the CRS that GDAL calls CRS84.
    """
    if epsg is None:
        return None
    name = "urn:ogc:def:crs:OGC:1.3:CRS84" if epsg == _WGS_84 else f"urn:ogc:def:crs:EPSG::{epsg}"
    return {"type": "name", "properties": {"name": name}}
