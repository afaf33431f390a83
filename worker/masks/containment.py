"""Which mask lies within which: the parts of an object, by its pixels.

Computed from the masks' runs: a pair costs as much as the runs of the smaller one, and less if they share little.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from maskfleet.worker.masks.kernel import kernel
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.rle import Spans, column_spans

#: How much of a mask must be inside another.  Less than all: the outlines of a part and of its object, which are found
#: independently, differ by a few pixels where they should be one line.
SHARE = 0.9
#: Masks whose runs are kept decoded: some 50 MB if each is of most of a photo of 18 MP.
_DECODED = 256


def parents(masks: Sequence[Mask]) -> list[int | None]:
    """Return for each mask the index of its parent: the smallest larger one that has SHARE of its pixels."""
    found: list[int | None] = [None] * len(masks)
    if not masks:
        return found

    @lru_cache(maxsize=_DECODED)
    def spans(number: int) -> Spans:
        return column_spans(masks[number].counts, masks[number].size_hw)

    by_area = np.argsort([mask.area for mask in masks], kind="stable")
    areas = np.array([masks[number].area for number in by_area])
    boxes = np.array([masks[number].bbox_xywh for number in by_area])
    left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    for place, number in enumerate(by_area.tolist()):
        if not areas[place]:
            continue
        larger = slice(int(np.searchsorted(areas, areas[place], side="right")), None)
        # No more pixels are shared than the boxes share
        width = np.minimum(right[larger], right[place]) - np.maximum(left[larger], left[place])
        height = np.minimum(bottom[larger], bottom[place]) - np.maximum(top[larger], top[place])
        near = (width > 0) & (height > 0) & (width * height >= SHARE * areas[place])
        most_outside = int((1 - SHARE) * areas[place])
        for other in by_area[larger][near].tolist():
            if _is_inside(spans(number), spans(other), most_outside):
                found[number] = other
                break
    return found


def warm_up() -> None:
    """Compile the kernel, or load it from the cache."""
    spans = np.array([[0, 0, 1]], np.int32)
    _is_inside(spans, spans, 0)


@kernel
def _is_inside(inner: Spans, outer: Spans, most_outside: int) -> bool:
    """Return whether at most so many pixels of one mask are outside the other."""
    outside, at = 0, 0
    for span in range(len(inner)):
        column, start, stop = inner[span, 0], inner[span, 1], inner[span, 2]
        while at < len(outer) and (outer[at, 0] < column or (outer[at, 0] == column and outer[at, 2] <= start)):
            at += 1
        outside += stop - start
        other = at
        while other < len(outer) and outer[other, 0] == column and outer[other, 1] < stop:
            outside -= min(stop, outer[other, 2]) - max(start, outer[other, 1])
            other += 1
        if outside > most_outside:
            return False
    return True
