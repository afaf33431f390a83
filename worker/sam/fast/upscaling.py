"""Upscaling of the wanted masks: from the decoder's image to logits at four times its size.

The library applies two transposed convolutions to the image, the first followed by a layer norm, each by a GELU, and
multiplies the result by a vector per mask.  Kernel and stride are both 2, so no output depends on two inputs, and a
convolution is a matrix product, after which each position holds its 2 × 2 block of outputs.  Here they are computed
separately for the upper and the lower row of each block: then the positions of a row of the image, the columns of their
blocks, and the columns of the blocks within those follow one another in memory as in the mask, whose rows are copied
whole.  The first product takes the image in its low-rank form: (keys·U) = scale·(own·U) + rowsᵀ·(basis·U), where own·U
is a table.  What either convolution adds at each output, in SAM 2 from finer maps of the image, is a table too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from maskfleet.worker.sam.fast.folding import FoldedDecoder
from maskfleet.worker.sam.fast.image_state import ImageState
from maskfleet.worker.sam.fast.low_rank import LowRankImage, Scratch

#: Positions upscaled at once on a CPU, so that their outputs stay in its cache.
_CACHED_POSITIONS = 1024


class Upscaling:
    """The upscaling half of one model's mask decoder."""

    def __init__(self, decoder: Any, folded: FoldedDecoder) -> None:
        self._folded = folded
        self._norm = decoder.upscale_layer_norm
        self._towers = [copy.deepcopy(tower).double() for tower in decoder.output_hypernetworks_mlps]

    def vectors(self, tokens: Tensor, masks: Tensor) -> Tensor:
        """Return the vectors that produce masks.

        tokens: (U, k, C); masks: (U, k), which of the mask tokens they are, in the host's memory.  Returns (U, k, c8).
        """
        flat = tokens.flatten(0, 1)
        vectors = flat.new_empty(len(flat), self._folded.upscale2.shape[2] // 2)
        for number, tower in enumerate(self._towers):
            here = (masks.flatten() == number).nonzero()[:, 0].to(tokens.device, non_blocking=True)
            vectors[here] = tower(flat[here].double()).float()
        return vectors.view(*masks.shape, -1)

    def logits(self, state: ImageState, image: LowRankImage, vectors: Tensor, scratch: Scratch) -> Tensor:
        """Upscale B prompts' images and multiply each by its k vectors.

        vectors: (B, k, c8).  Returns (B, k, 4h, 4w), in the scratch's memory.
        """
        height, width = state.size_hw
        prompts, masks, _ = vectors.shape
        out = scratch.take("masks", prompts, masks, height, 4, 4 * width)
        rows_at_once = max(1, _CACHED_POSITIONS // width) if vectors.device.type == "cpu" else height
        for upper in (0, 1):
            weights = self._folded.upscale1[upper]
            if vectors.device.type == "cpu":  # prompt by prompt: rounding must not depend on which others are wanted
                on_basis = torch.stack([basis @ weights for basis in image.basis])
            else:
                on_basis = torch.matmul(image.basis, weights)
            for top in range(0, height, rows_at_once):
                rows = slice(top, min(top + rows_at_once, height))
                positions = slice(rows.start * width, rows.stop * width)
                once = self._once(state, upper, image, positions, on_basis, scratch)
                outputs = slice(2 * positions.start, 2 * positions.stop)
                for lower in (0, 1):
                    twice = self._twice(once, lower, state.upscale_bias.second[upper, lower, outputs], scratch)
                    made = torch.bmm(vectors, twice.transpose(1, 2))
                    out[:, :, rows, 2 * upper + lower] = made.view(prompts, masks, -1, 4 * width)
        return out.view(prompts, masks, 4 * height, 4 * width)

    def _once(
        self, state: ImageState, upper: int, image: LowRankImage, positions: slice, on_basis: Tensor, scratch: Scratch
    ) -> Tensor:
        """Apply the first convolution and the norm.  Returns (B, 2·p, c4)."""
        shared, upscale_bias = state.upscaled[upper, positions], state.upscale_bias.first[upper, positions]
        once = scratch.take("once", len(image.scale), *shared.shape)
        torch.addcmul(upscale_bias, shared, image.scale[:, positions, None], out=once)
        once.baddbmm_(image.rows[:, :, positions].transpose(1, 2), on_basis)
        norm = self._norm
        pixels = once.view(len(once), -1, *norm.normalized_shape)
        return _gelu_(layer_norm(pixels, norm.normalized_shape, norm.weight, norm.bias, norm.eps))

    def _twice(self, once: Tensor, lower: int, upscale_bias: Tensor, scratch: Scratch) -> Tensor:
        """Apply the second convolution.  upscale_bias: (2·p, 2·c8).  Returns (B, 4·p, c8)."""
        twice = scratch.take("twice", len(once), *upscale_bias.shape)
        twice.copy_(upscale_bias)
        twice.flatten(0, 1).addmm_(once.flatten(0, 1), self._folded.upscale2[lower])
        return _gelu_(twice).view(len(once), 2 * once.shape[1], -1)


def _gelu_(values: Tensor) -> Tensor:
    """Apply GELU in place: fresh memory would cost more than the function."""
    activated: Tensor = torch.ops.aten.gelu_(values)
    return activated
