"""What a mask is, and which of a decoder's candidates become one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskfleet.worker.masks import measure, rle
from maskfleet.worker.masks.rle import decode_rle
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.crops import Crop
from maskfleet.worker.sam.embedding import Frame


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask on the original image, with SA-1B's measures.

    counts: COCO's compressed RLE, for size_hw.  bbox_xywh: COCO's box, from the first pixel to past the last,
    so a mask of one pixel is 1 wide (SA-1B's own boxes end one pixel earlier); an empty mask's is 0 wide and high.
    stability_score: in [0, 1].  predicted_iou: the model's estimate, not bounded.  point_coords: the points
    given, or the point of the grid.  crop_box_xywh: the part of the image that was segmented.
    prompt: index into the job's prompts, None in mode everything.  candidate: 0 to 2 with multimask, else None.
    logits: (h, w) at the model's low resolution, of the crop; only if requested.
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
    """The threshold on logits, and how stable a mask must be when it is shifted; 0 accepts every mask."""

    threshold: float
    stability_offset: float = 1.0
    stability_thresh: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """What masks of one embedding are measured on, and how.

    frame, crop: where its pixels lie in the model's input and in the image of size_wh.  keep_logits: in the masks
    themselves.
    """

    frame: Frame
    crop: Crop
    size_wh: tuple[int, int]
    cut: Cut
    keep_logits: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """Candidates that become masks.  rows: the prompts in their batch; columns: the candidates; both (K,).

    Always in the host's memory, wherever the candidates are: a GPU's answer is waited for once, to choose.
    """

    rows: Tensor
    columns: Tensor


def choose_promising(candidates: Candidates, pred_iou_thresh: float) -> Chosen:
    """Keep candidates with a predicted IoU above the threshold; 0 keeps all, as in transformers."""
    predicted_iou = candidates.scores_on_host().predicted_iou
    promising = predicted_iou > pred_iou_thresh if pred_iou_thresh > 0 else predicted_iou.isfinite()
    rows, columns = promising.nonzero(as_tuple=True)
    return Chosen(rows, columns)


def choose_best(candidates: Candidates) -> Chosen:
    """Keep each prompt's candidate with the highest predicted IoU."""
    columns = candidates.scores_on_host().predicted_iou.argmax(dim=1)
    return Chosen(torch.arange(len(columns)), columns)


def choose_all(candidates: Candidates) -> Chosen:
    """Keep all candidates in the model's order."""
    rows, columns = torch.ones(candidates.predicted_iou.shape).nonzero(as_tuple=True)
    return Chosen(rows, columns)


def decode_mask(mask: Mask) -> npt.NDArray[np.bool_]:
    """Decode a mask's pixels.  Returns (H, W), columns contiguous."""
    return decode_rle(mask.counts, mask.size_hw)


def warm_up() -> None:
    """Compile the kernels that measure and encode masks, or load them from the cache; the first time takes seconds."""
    measure.warm_up()
    rle.warm_up()
