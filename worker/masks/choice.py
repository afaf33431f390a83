"""Which of a decoder's candidates become masks, and how those are measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.crops import Crop
from maskfleet.worker.sam.embedding import Frame


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
