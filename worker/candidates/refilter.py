"""Kept candidates filtered again: the masks of a full run with these thresholds, without the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maskfleet.jobs.schema.spec import EverythingParams
from maskfleet.worker.candidates.kept import KeptCandidates
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.suppression import are_good, better_of_overlapping, smaller_crop_of_overlapping


def refilter(kept: KeptCandidates, params: EverythingParams) -> tuple[Mask, ...]:
    """Return the masks, in their order, that ``segment`` finds with these thresholds, ``crops_suppression`` included.

    params: the job's own but for those; neither threshold may be lower than what was kept.
    """
    crops = len(kept.crops_xywh)
    all_at_once = params.crops_suppression == "library" and crops > 1
    found: list[int] = []
    good = are_good(kept.predicted_iou, kept.first.stability_score, kept.first.area, params)
    for crop in range(crops):
        own = np.flatnonzero(good & (kept.crop == crop)).tolist()
        if not all_at_once:
            firsts = [kept.mask(number, kept.first) for number in own]
            own = [own[index] for index in better_of_overlapping(firsts, params.crops_nms_thresh)]
        found += own
    # From here on as they are, whether or not they were decoded again
    masks = [kept.mask(number, kept.last) for number in found]
    if crops > 1:
        choose = better_of_overlapping if all_at_once else smaller_crop_of_overlapping
        chosen = choose(masks, params.crops_nms_thresh)
        found, masks = [found[index] for index in chosen], [masks[index] for index in chosen]
    return tuple(replace(mask, counts=kept.counts_of(number)) for number, mask in zip(found, masks, strict=True))
