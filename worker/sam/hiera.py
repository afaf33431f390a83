"""SAM 2's encoder, window by window: the library's own blocks, in a third of the memory.

Hiera's first stage sees 256 × 256 positions.  Hiera large holds 144 numbers for each, 38 MB; three times that are its
queries, keys and values, four times the hidden layer of its MLP, and as much again goes into laying out windows and
into activations.  But windows are independent of each other, and everything else in a block works on one position:
a block applied to a few rows of windows gives these rows of its output.  So a block runs over strips of whole windows,
each small enough to stay in a core's cache, and only its input and output have full size.  The few blocks that attend
over the whole image come late, at 64 × 64 positions, and are left unchanged.

With each map of the image the neck returns its positional encoding: 67 MB for the finest, kept for the next call, and
as much again to compute it.  Only the memory of frames reads it, which still images do not have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel, Sam2MultiScaleBlock

#: The memory for the widest tensor in a strip, its MLP's hidden layer.  On a CPU about a core's share of the cache; a
#: GPU has room for a whole block of the widest model, and is slower with smaller kernels.
_STRIP_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}


def encode_in_strips(vision_encoder: Any) -> None:
    """Replace the blocks of a Sam2VisionModel and drop its positional encodings; its parameters are unchanged.

    An EdgeTamVisionModel, whose backbone has no such blocks, only loses the positional encodings.
    """
    vision_encoder.neck.position_encoding = NoPositions()
    if isinstance(vision_encoder.backbone, Sam2HieraDetModel):
        for block in vision_encoder.backbone.blocks:
            block.__class__ = StripedBlock


class StripedBlock(Sam2MultiScaleBlock):  # type: ignore[no-untyped-call]  # the library has few types
    """A block that processes its image in strips of whole windows.

    It has no state of its own: changing the class of one of the library's blocks turns it into this.
    """

    def forward(self, hidden_states: Tensor, **settings: Any) -> Tensor:
        """Attend and transform.  hidden_states: (B, h, w, C).  Returns (B, h, w, C'), or half of h and w."""
        height, rows = hidden_states.shape[1], self._rows_at_once(hidden_states)
        strip = super().forward(hidden_states[:, :rows], **settings)
        if rows >= height:
            return strip
        shrinks: Any = self.query_stride  # (2, 2) at the start of a stage, else None
        stride = shrinks[0] if shrinks else 1
        images, _, *size = strip.shape
        whole = strip.new_empty(images, height // stride, *size)
        whole[:, : rows // stride] = strip
        for top in range(rows, height, rows):
            strip = super().forward(hidden_states[:, top : top + rows], **settings)
            whole[:, top // stride : (top + rows) // stride] = strip
        return whole

    def _rows_at_once(self, hidden_states: Tensor) -> int:
        images, height, width, _ = hidden_states.shape
        if not self.window_size:
            return height
        row = images * width * self.mlp.proj_in.out_features * hidden_states.element_size()
        allowed = _STRIP_BYTES.get(hidden_states.device.type, _STRIP_BYTES["cuda"])
        return self.window_size * max(1, allowed // (self.window_size * row))


class NoPositions(nn.Module):
    """Replaces the positional encoding: of its shape, on the meta device, which holds no data and fails when read."""

    def forward(self, shape: torch.Size, _device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)
