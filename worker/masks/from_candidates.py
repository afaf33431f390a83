"""Candidates made into masks on the original's pixels: measured, and the unstable left out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from maskfleet.worker.masks.choice import Chosen, View
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.measure import keep_logits_window, measure, stability
from maskfleet.worker.masks.pending import PendingMask
from maskfleet.worker.masks.resampling import bilinear_map_of
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.prompts import PromptBatch

#: Masks that are made and measured at once: 16 MB of SAM's logits.
_MASKS_AT_ONCE = 64


def measure_masks(candidates: Candidates, chosen: Chosen, batch: PromptBatch, view: View) -> Iterator[PendingMask]:
    """Measure chosen candidates, some at a time, and yield the stable ones.

    The masks name neither prompt nor candidate yet: that is for the mode to say.
    """
    if not len(chosen.rows):
        return
    left, top, right, bottom = view.crop.box_xyxy
    cut, predicted_iou = view.cut, candidates.scores_on_host().predicted_iou
    for rows, columns in zip(
        *(torch.split(table, _MASKS_AT_ONCE) for table in (chosen.rows, chosen.columns)), strict=True
    ):
        low = candidates.logits(rows, columns)
        bilinear_map = bilinear_map_of((low.shape[1], low.shape[2]), view.frame)
        logits = bilinear_map.prepare(low)
        measures = measure(logits, bilinear_map, cut.threshold, cut.stability_offset, torch.get_num_threads())
        scores = stability(measures)
        predicted = predicted_iou[rows, columns].tolist()
        for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            # float32 against float32, as torch compares; 0 takes masks of no stability too
            if cut.stability_thresh > 0 and not scores[index] > np.float32(cut.stability_thresh):
                continue
            x0, y0, x1, y1 = measures.boxes_xyxy[index].tolist()
            mask = Mask(
                counts="",
                size_hw=(view.size_wh[1], view.size_wh[0]),
                area=int(measures.areas[index, 1]),
                bbox_xywh=(left + x0, top + y0, x1 - x0, y1 - y0),
                predicted_iou=predicted[index],
                stability_score=float(scores[index]),
                point_coords=batch.asked_xy[row],
                crop_box_xywh=(left, top, right - left, bottom - top),
                prompt=None,
                candidate=None,
                logits=low[index].to("cpu", torch.float32, copy=True).numpy() if view.keep_logits else None,
            )
            logits_window = keep_logits_window(logits[index], measures.windows[index], bilinear_map)
            yield PendingMask(mask, view, batch, row, column, logits_window, bilinear_map)
