"""The fast decoder for SAM 2, and for EdgeTAM, whose decoder is the same.

It differs from SAM's (``sam``) as follows: the first token scores whether there is an object at all; two
finer maps of the image enter the upscaling (``image_state.UpscaleBias``); and if one mask is wanted, the network
returns its single mask only if that is stable.
Source: Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos".
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from maskfleet.worker.sam.candidates import Candidates, at_hand
from maskfleet.worker.sam.fast.image_state import ImageState, with_finer_maps
from maskfleet.worker.sam.fast.sam import FastSam


class FastSam2(FastSam):
    """The decoder of one Sam2Model or EdgeTamModel."""

    scores_objects: ClassVar[bool] = True
    ends_boxes: ClassVar[bool] = True

    @classmethod
    def unsuited(cls, network: Any) -> str | None:
        side, other = network.prompt_encoder.image_embedding_size
        expected = [[times * side, times * other] for times in (4, 2, 1)]
        sizes = [list(size) for size in network.backbone_feature_sizes]
        if sizes != expected:
            return f"its image feature maps have the sizes {sizes} instead of {expected}"
        return super().unsuited(network)

    def image_state(self, embeddings: Any) -> ImageState:
        """Prepare an image.  embeddings: (1, c8, 4h, 4w), (1, c4, 2h, 2w) and (1, C, h, w)."""
        four_times, twice, embedding = (one.float() for one in embeddings)
        with torch.inference_mode():
            return self._state_of(embedding, with_finer_maps(self._folded, twice, four_times))

    def _single(self, candidates: Candidates) -> Candidates:
        """Return the network's own choice: the single mask if that is stable, else the best of the three."""
        predicted_iou = candidates.predicted_iou.cpu()
        every = torch.arange(len(predicted_iou))
        chosen = torch.zeros_like(every)
        masks = candidates.logits(every, chosen)
        if self._decoder.dynamic_multimask_via_stability:
            stability = self._stability(masks).cpu()
            unstable = (stability < self._decoder.dynamic_multimask_stability_thresh).nonzero()[:, 0]
            chosen[unstable] = 1 + predicted_iou[unstable, 1:].argmax(1)
            masks[unstable.to(masks.device, non_blocking=True)] = candidates.logits(unstable, chosen[unstable])
        return at_hand(masks[:, None], predicted_iou[every, chosen, None].to(masks.device), candidates.object_score)

    def _stability(self, masks: Tensor) -> Tensor:
        """Score as the network does, on low-resolution logits; an empty mask is stable.  masks: (N, h, w)."""
        delta = self._decoder.dynamic_multimask_stability_delta
        inner, outer = ((masks > cut).flatten(1).sum(1) for cut in (delta, -delta))
        return torch.where(outer > 0, inner / outer, 1.0)
