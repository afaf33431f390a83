"""The parts of an image that mode ``everything`` segments: the whole, and layers of overlapping crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maskfleet.jobs.schema.spec import EverythingParams


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of the image, in whole pixels of the original, and the side of its grid of points."""

    box_xyxy: tuple[int, int, int, int]
    points_per_side: int

    @property
    def size_wh(self) -> tuple[int, int]:
        left, top, right, bottom = self.box_xyxy
        return right - left, bottom - top


def whole(size_wh: tuple[int, int], points_per_side: int = 0) -> Crop:
    """Return the whole image as a single crop."""
    return Crop((0, 0, *size_wh), points_per_side)


def lay_out(size_wh: tuple[int, int], params: EverythingParams) -> tuple[Crop, ...]:
    """Return the whole image, then ``crops_n_layers`` layers of (2**i)² crops, column by column.

    The same boxes and grids as transformers' pipeline, which fails in two cases that work here: layers with
    different numbers of points (here each crop has its own grid, of at least one point), and images so small
    that a crop would be empty (such crops are left out).
    """
    width, height = size_wh
    crops = [whole(size_wh, params.points_per_crop)]
    for layer in range(1, params.crops_n_layers + 1):
        per_side = 2**layer
        overlap = int(params.crop_overlap_ratio * min(width, height) * (2 / per_side))
        crop_width = math.ceil((overlap * (per_side - 1) + width) / per_side)
        crop_height = math.ceil((overlap * (per_side - 1) + height) / per_side)
        points_per_side = max(1, int(params.points_per_crop / params.crop_n_points_downscale_factor**layer))
        for column in range(per_side):
            for row in range(per_side):
                left, top = (crop_width - overlap) * column, (crop_height - overlap) * row
                box = (left, top, min(left + crop_width, width), min(top + crop_height, height))
                if left < width and top < height:
                    crops.append(Crop(box, points_per_side))
    return tuple(crops)


def count_grid_batches(crops: Sequence[Crop], points_per_batch: int) -> int:
    """Count the batches of points over all crops; no batch spans two crops."""
    return sum(-(-(crop.points_per_side**2) // points_per_batch) for crop in crops)
