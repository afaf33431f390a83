"""The tiles' results: what a job wrote of each, as masks on the raster."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.raster.layout import Box, Layout
from maskfleet.raster.seams import TileMask
from maskfleet.raster.spans import Spans

_COCO = "coco.json"


def reader(
    layout: Layout, folders: Mapping[int, Path], *, min_piece: int = 0, nms_thresh: float = 1.0
) -> Callable[[int], Sequence[TileMask]]:
    """Return a function that reads a tile's masks, without pieces of fewer pixels than min_piece.

    Of masks whose boxes, or whose pixels, overlap now by more than nms_thresh the best is kept: pieces that lie far off
    had made boxes large, and so masks of one object different.
    The function raises OSError, InvalidRequest (``result_unreadable``).
    Source: segment-anything, automatic_mask_generator.py, postprocess_small_regions.
    """
    stride = layout.size_wh[1] + 1

    def read(number: int) -> Sequence[TileMask]:
        file = folders[number] / _COCO
        try:
            annotations = json.loads(file.read_bytes())["annotations"]
            masks = [_mask(one, layout.box(number), stride, min_piece) for one in annotations]
            return _best([mask for mask in masks if len(mask.spans.starts)], nms_thresh)
        except (ValueError, LookupError, TypeError) as error:
            detail = f"{file} is damaged. Remove it, and the same command makes it again."
            raise InvalidRequest("result_unreadable", detail) from error

    return read


def write_empty(folder: Path, box: Box) -> None:
    """Write the result of a tile that shows nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    image = {"id": 1, "file_name": folder.name, "width": box.right - box.left, "height": box.bottom - box.top}
    (folder / _COCO).write_text(json.dumps({"images": [image], "annotations": []}))


def _mask(annotation: dict[str, Any], box: Box, stride: int, min_piece: int) -> TileMask:  # Any: JSON
    return TileMask(
        float(annotation["predicted_iou"]),
        float(annotation["stability_score"]),
        Spans.of_rle(annotation["segmentation"]["counts"], box, stride).without_small_pieces(min_piece),
    )


def _best(masks: Sequence[TileMask], nms_thresh: float) -> list[TileMask]:
    """Return the masks that have neither their box nor their pixels in common with a better one."""
    kept: list[TileMask] = []
    for mask in sorted(masks, key=lambda mask: -mask.score):
        if not any(_overlap_more(mask, other, nms_thresh) for other in kept):
            kept.append(mask)
    return kept


def _overlap_more(one: TileMask, other: TileMask, nms_thresh: float) -> bool:
    if not one.box & other.box:
        return False
    if one.box.iou(other.box) > nms_thresh:
        return True
    area, its_area = one.spans.area, other.spans.area
    if min(area, its_area) <= nms_thresh * max(area, its_area):
        return False
    shared = (one.spans & other.spans).area
    return shared > nms_thresh * (area + its_area - shared)
