"""The mask candidates of a decoder for a batch of prompts; and decoding with the library's own decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskfleet.worker.sam.prompts import PromptBatch


@dataclass(frozen=True, slots=True)
class Candidates:
    """The decoder's candidates for N prompts, C each.

    predicted_iou: (N, C), the model's own estimate of how good each is; not bounded to [0, 1].
    logits(rows, columns): the low-resolution masks (K, h, w) of K candidates, computed on demand, since most
    are never used; rows, columns: (K,), the prompts in their batch and the candidates, best in the host's memory.  A
    mask is where its logits are above the threshold.
    object_score: (N,), above 0 where the model sees an object at all; None for families without it.
    """

    predicted_iou: Tensor
    logits: Callable[[Tensor, Tensor], Tensor]
    object_score: Tensor | None = None

    def from_column(self, first: int) -> Candidates:
        """Return the candidates of the same prompts from one column on."""
        return Candidates(
            self.predicted_iou[:, first:], lambda rows, columns: self.logits(rows, columns + first), self.object_score
        )

    def scores_on_host(self) -> Candidates:
        """Return the same candidates with their scores in the host's memory, to choose by."""
        return replace(self, predicted_iou=self.predicted_iou.cpu())

    def on_host(self, rows: Tensor, columns: Tensor) -> Candidates:
        """Compute the masks of the chosen candidates, and only those, and copy them to the host's memory.

        rows, columns: in the host's memory.  The result no longer uses the device, so another thread may measure it.
        """
        made = self.logits(rows, columns).to("cpu")
        places = torch.full(self.predicted_iou.shape, -1)
        places[rows, columns] = torch.arange(len(made))
        return Candidates(self.predicted_iou.cpu(), lambda some, of: made[places[some, of]])


def at_hand(logits: Tensor, predicted_iou: Tensor, object_score: Tensor | None = None) -> Candidates:
    """Return candidates whose masks are all computed already.  logits: (N, C, h, w)."""
    return Candidates(predicted_iou, lambda rows, columns: logits[rows, columns], object_score)


def decode_with_library(network: Any, batch: PromptBatch, *, multimask: bool, **image: Any) -> Candidates:
    """Decode a batch with one of the library's models.

    image: the model's arguments for the image's embeddings, tensors of batch size 1 or lists of them.
    """
    device = network.device
    points, labels, boxes = (
        None if values is None else values[None].to(device, non_blocking=True)
        for values in (batch.points_xy, batch.labels, batch.boxes_xyxy)
    )
    masks = None
    if batch.mask_input is not None:
        # The library adds a dense prompt to a whole image, so here each prompt needs its own copy of the image.
        points, labels, boxes = (None if given is None else given.transpose(0, 1) for given in (points, labels, boxes))
        image = {name: _repeated(values, len(batch.indices)) for name, values in image.items()}
        masks = batch.mask_input[:, None].to(device)
    output = network(
        **image,
        input_points=points,
        input_labels=labels,
        input_boxes=boxes,
        input_masks=masks,
        multimask_output=multimask,
    )
    object_score = output.get("object_score_logits")
    return at_hand(
        output.pred_masks.flatten(0, 1),
        output.iou_scores.flatten(0, 1),
        None if object_score is None else object_score.flatten(),
    )


def _repeated(values: Any, times: int) -> Any:
    if isinstance(values, Tensor):
        return values.expand(times, *values.shape[1:])
    return [_repeated(one, times) for one in values]
