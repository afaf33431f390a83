"""Candidates made into masks on the original's pixels: chosen, measured, filtered, and written when they stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker import outlines, runs
from worker.crops import Crop
from worker.decoder import Candidates
from worker.embedding import Frame
from worker.geometry import Geometry, one_step, two_steps
from worker.outlines import NO_OUTLINE, Measures, Outline, keep_outline, measure, trace
from worker.prompts import PromptBatch
from worker.runs import decode_runs, write_runs

#: Masks that are made and measured at once: 16 MB of SAM's logits.
_MASKS_AT_ONCE = 64
#: Logits that unwritten masks may hold.  Mostly some 10 kB each; a mask of the whole image holds 256 kB.
_OUTLINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask on the original image, with SA-1B's measures.

    counts: COCO's compressed RLE, for size_hw.  bbox_xywh: COCO's box, from the first pixel to past the last,
    so a mask of one pixel is 1 wide (SA-1B's own boxes end one pixel earlier); an empty mask's has no size.
    stability_score: in [0, 1].  predicted_iou: the model's guess, not bounded.  point_coords: the points
    given, or the point of the grid.  crop_box_xywh: the part of the image that was looked at.
    prompt: index into the job's prompts, None in mode everything.  candidate: 0 to 2 with multimask, else None.
    logits: (h, w) at the model's low resolution, of the crop; only where they were asked for.
    """

    counts: str
    size_hw: tuple[int, int]
    area: int
    bbox_xywh: tuple[float, float, float, float]
    predicted_iou: float
    stability_score: float
    point_coords: tuple[tuple[float, float], ...]
    crop_box_xywh: tuple[float, float, float, float]
    prompt: int | None
    candidate: int | None
    logits: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where logits are cut, and how stable a mask must be under a shift of the cut; 0 takes them all."""

    threshold: float
    stability_offset: float = 1.0
    stability_thresh: float = 0.0


@dataclass(frozen=True, slots=True)
class Draft:
    """A mask that is measured and not written yet: its counts are empty.

    outline: what it is traced from.  offset_xy: of its crop in the image.
    """

    mask: Mask
    outline: Outline
    geometry: Geometry
    threshold: float
    offset_xy: tuple[int, int]

    def written(self) -> Mask:
        """Trace the mask and write its runs."""
        if self.mask.counts:
            return self.mask
        size_hw = self.mask.size_hw
        changes = trace(self.outline, self.geometry, self.threshold, size_hw[0], self.offset_xy)
        return replace(self.mask, counts=write_runs(changes, size_hw))

    def without_outline(self) -> Draft:
        """The same, written: a few bytes for each run in place of its logits."""
        return replace(self, mask=self.written(), outline=NO_OUTLINE)


class Drafts:
    """The masks found so far: drafts, since most are suppressed in the end; written ones when memory is short."""

    def __init__(self) -> None:
        self._drafts: list[Draft] = []
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._drafts)

    def add(self, draft: Draft) -> None:
        if self.held_bytes + draft.outline.turned.nbytes > _OUTLINE_BYTES:
            draft = draft.without_outline()
        self.held_bytes += draft.outline.turned.nbytes
        self._drafts.append(draft)

    def keep(self, choose: Callable[[Sequence[Mask]], Sequence[int]], first: int = 0) -> None:
        """Of the masks from first on, keep those that are chosen, in the order of the choice."""
        rest = self._drafts[first:]
        self._drafts[first:] = [rest[index] for index in choose([draft.mask for draft in rest])]
        self.held_bytes = sum(draft.outline.turned.nbytes for draft in self._drafts)

    def written(self) -> tuple[Mask, ...]:
        return tuple(draft.written() for draft in self._drafts)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Candidates worth a mask.  rows: of the prompt in its batch; columns: of the candidate; both (K,)."""

    rows: Tensor
    columns: Tensor


def choose_promising(candidates: Candidates, pred_iou_thresh: float) -> Chosen:
    """Keep candidates of a predicted IoU above the threshold; 0 keeps all, as in transformers."""
    promising = (
        candidates.predicted_iou > pred_iou_thresh if pred_iou_thresh > 0 else candidates.predicted_iou.isfinite()
    )
    rows, columns = promising.nonzero(as_tuple=True)
    return Chosen(rows, columns)


def choose_best(candidates: Candidates) -> Chosen:
    """Keep each prompt's candidate of the highest predicted IoU."""
    columns = candidates.predicted_iou.argmax(dim=1)
    return Chosen(torch.arange(len(columns), device=columns.device), columns)


def choose_all(candidates: Candidates) -> Chosen:
    """Keep all candidates in the model's order."""
    rows, columns = torch.ones_like(candidates.predicted_iou).nonzero(as_tuple=True)
    return Chosen(rows, columns)


def draft_masks(
    candidates: Candidates,
    chosen: Chosen,
    batch: PromptBatch,
    frame: Frame,
    crop: Crop,
    size_wh: tuple[int, int],
    cut: Cut,
    keep_logits: bool = False,
) -> Iterator[tuple[int, int, Draft]]:
    """Measure chosen candidates, some at a time; give (row, column, draft) of the stable ones.

    The masks name neither prompt nor candidate yet: that is for the mode to say.  keep_logits: in the masks themselves.
    """
    if not len(chosen.rows):
        return
    left, top, right, bottom = crop.box_xyxy
    for rows, columns in zip(
        *(torch.split(table, _MASKS_AT_ONCE) for table in (chosen.rows, chosen.columns)), strict=True
    ):
        low = candidates.logits(rows, columns)
        geometry = geometry_of((low.shape[1], low.shape[2]), frame)
        logits = geometry.prepare(low)
        measures = measure(logits, geometry, cut.threshold, cut.stability_offset, torch.get_num_threads())
        scores = stability(measures)
        predicted = candidates.predicted_iou[rows, columns].tolist()
        for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            # float32 against float32, as torch compares; 0 takes masks of no stability too
            if cut.stability_thresh > 0 and not scores[index] > np.float32(cut.stability_thresh):
                continue
            x0, y0, x1, y1 = measures.boxes_xyxy[index].tolist()
            mask = Mask(
                counts="",
                size_hw=(size_wh[1], size_wh[0]),
                area=int(measures.areas[index, 1]),
                bbox_xywh=(left + x0, top + y0, x1 - x0, y1 - y0),
                predicted_iou=predicted[index],
                stability_score=float(scores[index]),
                point_coords=batch.asked_xy[row],
                crop_box_xywh=(left, top, right - left, bottom - top),
                prompt=None,
                candidate=None,
                logits=low[index].to("cpu", torch.float32, copy=True).numpy() if keep_logits else None,
            )
            outline = keep_outline(logits[index], measures.windows[index], geometry)
            yield row, column, Draft(mask, outline, geometry, cut.threshold, (left, top))


def geometry_of(low_hw: tuple[int, int], frame: Frame) -> Geometry:
    """How low-resolution logits cover the original in a frame."""
    if frame.keeps_aspect:
        return two_steps(low_hw, frame.padded_hw, frame.scaled_hw, frame.original_hw)
    return one_step(low_hw, frame.original_hw)


def stability(measures: Measures) -> npt.NDArray[np.float32]:
    """Score how little each mask changes when its cut shifts by ±offset: the inner area over the outer.

    Returns (K,) in [0, 1]; 0 for an empty mask, where transformers has 0/0.
    Source: Kirillov et al. 2023, "Segment Anything", section 5 and appendix B.
    """
    outer, _, inner = measures.areas.astype(np.float32).T
    scores: npt.NDArray[np.float32] = inner / np.maximum(outer, np.float32(1))
    return scores


def decode_rle(mask: Mask) -> npt.NDArray[np.bool_]:
    """Read a mask's pixels back.  Returns (H, W), columns contiguous."""
    return decode_runs(mask.counts, mask.size_hw)


def warm_up() -> None:
    """Compile what measures and writes masks, or find it compiled: some seconds on a machine's first time."""
    outlines.warm_up()
    runs.warm_up()
