"""Prompts as tokens: points and boxes embedded as in SAM, prompts of different shapes in one padded batch.

SAM has one token per point, two for a box (its corners), and without a box one more, "not a point"; SAM 2 adds that one
after a box, too.  Prompts with fewer tokens than others in their batch are padded, and the padding is masked out of
every attention: a prompt is decoded as if it were alone.  (transformers pads with tokens
of zeros, label -10, which its decoder attends to: huggingface/transformers#32488.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskfleet.worker.sam.fast.low_rank import run_or_indices
from maskfleet.worker.sam.prompts import PADDING, PromptBatch

#: The library's label of the token in place of a missing box.
_NOT_A_POINT = -1


@dataclass(frozen=True, slots=True)
class Tokens:
    """N prompts' tokens, n each: the decoder's own, which carry its output, then the prompt's.

    values: (N, n, C).  padded: (N, n), True where a token is padding; None if none is.
    """

    values: Tensor
    padded: Tensor | None

    def take(self, prompts: Sequence[int]) -> Tokens:
        """Return the tokens of some prompts."""
        some = run_or_indices(prompts, self.values.device)
        return Tokens(self.values[some], None if self.padded is None else self.padded[some])


class PromptTokens:
    """The prompt encoder's weights for points and boxes, and the decoder's own tokens.

    output: (k, C), the decoder's own.  ends_boxes: whether "not a point" follows a box, too.
    """

    def __init__(self, prompt_encoder: Any, output: Tensor, *, ends_boxes: bool) -> None:
        self._frequencies: Tensor = prompt_encoder.shared_embedding.positional_embedding
        self._image_size = prompt_encoder.input_image_size
        # SAM has an embedding per label, SAM 2 one for all of them.
        off, on, *corners = torch.cat(list(prompt_encoder.point_embed.parameters()))
        self._of_label = torch.stack([off, on])
        self._of_corner = torch.stack(corners)
        self._not_a_point: Tensor = prompt_encoder.not_a_point_embed.weight[0]
        self._output = output
        self._ends_boxes = ends_boxes

    def of(self, batch: PromptBatch) -> Tokens:
        """Embed a batch of N prompts.

        What is padding is found out where the batch is, in the host's memory: a GPU need not be waited for.
        """
        points_xy, labels, boxes_xyxy = batch.points_xy, batch.labels, batch.boxes_xyxy
        parts, padded = [], []
        if points_xy is not None and labels is not None:
            parts.append(self._points(self._there(points_xy), self._there(labels)))
            padded.append(labels == PADDING)
        if boxes_xyxy is not None:
            missing = boxes_xyxy.isnan().any(1)
            parts.append(self._boxes(self._there(boxes_xyxy), self._there(missing)))
            # "Not a point", unless it follows anyway, takes the first corner's place; the second stays empty.
            padded.append(torch.stack([missing & self._ends_boxes, missing], dim=1))
        if boxes_xyxy is None or self._ends_boxes:
            parts.append(self._not_a_point.expand(len(parts[0]), 1, -1))
            padded.append(padded[0].new_zeros(len(parts[0]), 1))
        output = self._output.expand(len(parts[0]), -1, -1)
        padding = torch.cat([padded[0].new_zeros(output.shape[:2]), *padded], dim=1)
        return Tokens(torch.cat([output, *parts], dim=1), self._there(padding) if bool(padding.any()) else None)

    def _there(self, values: Tensor) -> Tensor:
        return values.to(self._output.device, non_blocking=True)

    def _points(self, points_xy: Tensor, labels: Tensor) -> Tensor:
        encoded = self._encoded(points_xy) + self._of_label[labels.clamp(0, 1)]
        return torch.where((labels == _NOT_A_POINT)[..., None], self._not_a_point, encoded)

    def _boxes(self, boxes_xyxy: Tensor, missing: Tensor) -> Tensor:
        corners = self._encoded(boxes_xyxy.view(-1, 2, 2)) + self._of_corner
        return torch.where(missing[:, None, None], self._not_a_point, corners)

    def _encoded(self, places_xy: Tensor) -> Tensor:
        """Return sines and cosines of positions at pixel centres; as in the library, first in the positions' precision.

        Source: Tancik et al. 2020, "Fourier features let networks learn high frequency functions".
        """
        from_middle = 2 * ((places_xy + 0.5) / self._image_size) - 1
        phases = 2 * math.pi * (from_middle.to(self._frequencies.dtype) @ self._frequencies)
        return torch.cat([phases.sin(), phases.cos()], dim=-1)
