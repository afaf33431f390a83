"""Prompts and an embedding, decoded into candidate masks at the model's low resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.embedding import Embedding
from worker.model import SegmentationModel
from worker.prompts import PromptBatch


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the decoder proposes for N prompts, C candidates each.

    logits: (N, C, h, w), a mask is where they are above the threshold.  predicted_iou: (N, C), the model's own
    guess of how good each is; not bounded to [0, 1].
    """

    logits: Tensor
    predicted_iou: Tensor


def decode(model: SegmentationModel, embedding: Embedding, batch: PromptBatch) -> Candidates:
    """Give the three candidates for each prompt of a batch, in the model's order: part, whole, or between.

    The model's single-mask output is not used: the best of the three by predicted IoU stands for "the mask",
    as in the guide, and it is always one of those that ``multimask`` gives.
    """
    points, labels, boxes = (
        None if values is None else values[None].to(model.device)
        for values in (batch.points_xy, batch.labels, batch.boxes_xyxy)
    )
    with torch.inference_mode():
        output = model.network(
            image_embeddings=embedding.values,
            input_points=points,
            input_labels=labels,
            input_boxes=boxes,
            multimask_output=True,
        )
    return Candidates(output.pred_masks[0], output.iou_scores[0])
