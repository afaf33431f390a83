"""What the fast decoder knows of an image before it sees a prompt: computed once, shared by every prompt.

Without a mask prompt the image that enters the decoder is the same for all prompts: x = embedding + "no mask".  So the
keys, values and queries of layer 1 are computed once.  After layer 1 a position p holds

    keys₁ = gain₁ ⊙ s₁·(x̃ + Σᵣ aᵣ·vᵣ) + shift₁        (x̃: x and the output's bias, centred)

with a prompt's own few vectors vᵣ and their weights aᵣ at p (``worker.two_way``).  The part in x̃ is linear up to the
factor s₁, so its way through every later projection, and its inner products with what a prompt adds (vᵣ is a token's
head through an output projection), are computed once as well.  After layer 2 the same goes for x̂ = gain₁ ⊙ x̃, centred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from worker.folding import FoldedDecoder, Reading, centred


@dataclass(frozen=True, slots=True)
class Shared:
    """The image's own part in a reading: keys (H, d, P), values (H, P, d)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class ImageState:
    """Tables over an image's P = h·w positions.

    embedding: (1, C, h, w), what they were made from; a prompt that brings a mask goes back to it.
    layer1: keys (H, P, d) here, as fused attention wants them, and values (H, P, d).  queries1, queries2: (H, d, P).
    power1, power2: (P,), the square of x̃ and of x̂.  overlap1: (H, d, P), x̃ on the spread of layer 1; overlap2: the
    same of x̂ on the spreads of layers 1 and 2.  overlap2_shift: (P,), x̂ on shift₂.  layer2, final: x̃ and x̂ as read
    there.  upscaled: (2, P, 2·c4), x̂ through the first transposed convolution, by row of its output.
    """

    embedding: Tensor
    size_hw: tuple[int, int]
    layer1: Shared
    queries1: Tensor
    power1: Tensor
    overlap1: Tensor
    layer2: Shared
    queries2: Tensor
    power2: Tensor
    overlap2: tuple[Tensor, Tensor]
    overlap2_shift: Tensor
    final: Shared
    upscaled: Tensor


def image_state(folded: FoldedDecoder, decoder: Any, embedding: Tensor, dense: Tensor) -> ImageState:
    """Prepare an image.

    decoder: the SamMaskDecoder that was folded; embedding: (1, C, h, w); dense: (1, C, h or 1, w or 1), the mask prompt
    or what stands for none.
    """
    first = decoder.transformer.layers[0]
    reading, asking = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    x = (embedding + dense)[0].flatten(1).t().contiguous()
    at_place = x + folded.positions
    own1 = centred(x + asking.out_proj.bias)
    own2 = centred(own1 * folded.gain1)
    by_head = (len(x), folded.heads, -1)
    return ImageState(
        embedding=embedding,
        size_hw=(embedding.shape[-2], embedding.shape[-1]),
        layer1=Shared(
            linear(at_place, reading.k_proj.weight, reading.k_proj.bias).view(by_head).transpose(0, 1).contiguous(),
            linear(x, reading.v_proj.weight, reading.v_proj.bias).view(by_head).transpose(0, 1).contiguous(),
        ),
        queries1=linear(at_place, asking.q_proj.weight, asking.q_proj.bias).view(by_head).permute(1, 2, 0).contiguous(),
        power1=own1.square().sum(1),
        overlap1=_through(folded.spread1, own1),
        layer2=_shared(folded.layer2, own1),
        queries2=_through(folded.query2, own1),
        power2=own2.square().sum(1),
        overlap2=(_through(folded.spread1 * folded.gain1, own2), _through(folded.spread2, own2)),
        overlap2_shift=own2 @ folded.shift2,
        final=_shared(folded.final, own2),
        upscaled=torch.matmul(own2, folded.upscale1),
    )


def _shared(reading: Reading, own: Tensor) -> Shared:
    return Shared(_through(reading.key, own), _through(reading.value, own).transpose(1, 2).contiguous())


def _through(weight: Tensor, own: Tensor) -> Tensor:
    """Project positions by head.  weight: (H, d, C); own: (P, C).  Returns (H, d, P)."""
    heads, width, channels = weight.shape
    return (weight.reshape(-1, channels) @ own.t()).view(heads, width, -1)
