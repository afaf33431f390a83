"""A drawn GeoTIFF: plain discs on plain ground, some across the seams of its tiles, with the exact mask of each."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

#: Half a metre a pixel.
PLACE = Affine(0.5, 0.0, 402_311.5, 0.0, -0.5, 5_655_123.5)
SIZE_WH = (1000, 760)
#: The tiles are of this size, and objects up to so many pixels are whole in one of them.
TILE, OVERLAP = 400, 110
#: x, y, radius: in one tile, across a seam, across a crossing of seams, at the raster's edge; the sixth is larger than
#: the overlap, and whole in no tile.
DISCS = (
    (120, 110, 45),
    (350, 100, 40),
    (345, 375, 48),
    (650, 560, 50),
    (990, 120, 45),
    (700, 240, 130),
    (130, 600, 50),
    (890, 640, 45),
)


@dataclass(frozen=True)
class Discs:
    """The raster's file, and (H, W) of what is to be seen of each disc."""

    path: Path
    masks: tuple[npt.NDArray[np.bool_], ...]


def draw_discs(path: Path, *, transform: Affine | None = PLACE, scale: int = 1, dtype: str = "uint8") -> Discs:
    """Write the raster.  transform: None for one without a place on the map.  scale: of values, for deeper pixels."""
    width, height = SIZE_WH
    rows, columns = np.mgrid[:height, :width] + 0.5
    pixels = np.broadcast_to(np.array(_colour(0.1, 0.25, 0.85))[:, None, None], (3, height, width)).copy()
    masks = []
    for number, (x, y, radius) in enumerate(DISCS):
        distance = np.hypot(columns - x, rows - y)
        inside = np.clip(radius - distance + 0.5, 0, 1)  # a soft edge, of one pixel
        colour = np.array(_colour(0.4 + 0.07 * number, 0.75, 0.4 + 0.05 * number))
        pixels += (colour[:, None, None] - pixels) * inside
        masks.append(distance <= radius)
    pixels += np.random.default_rng(1).normal(0, 2, (1, height, width))
    place = {} if transform is None else {"transform": transform, "crs": CRS.from_epsg(25833)}
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype=dtype, compress="deflate", **place
    ) as file:
        file.write((np.clip(pixels, 0, 255) * scale).astype(dtype))
    return Discs(path, tuple(masks))


def _colour(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return 255 * red, 255 * green, 255 * blue
