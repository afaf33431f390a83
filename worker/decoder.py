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


#: What a batch may take on a CPU, beside the weights: an ordinary machine has 8 GB.
_CPU_BATCH_BYTES = 4 * 2**30
#: Tensors of the embedding's size that a decoded point holds at its peak.  From the peak of transformers' decoder on
#: ViT-B: 2.6 GB over the weights with 64 points, that is 41 MB a point, of 4 MB embeddings.
_EMBEDDINGS_PER_POINT = 10


def batch_that_fits(model: SegmentationModel, points_per_batch: int) -> int:
    """Lower a batch to what memory holds: half of what is free on a GPU, 4 GB on a CPU.

    The masks do not depend on it but for rounding.
    """
    config = model.network.config
    positions = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    per_point = _EMBEDDINGS_PER_POINT * positions * config.mask_decoder_config.hidden_size * 4
    budget = torch.cuda.mem_get_info(model.device)[0] // 2 if model.device.type == "cuda" else _CPU_BATCH_BYTES
    return max(1, min(points_per_batch, int(budget // per_point)))


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
