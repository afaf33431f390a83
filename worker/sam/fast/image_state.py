"""What the fast decoder computes of an image before it sees a prompt: once, shared by every prompt.

Without a mask prompt the image that enters the decoder is the same for all prompts: x = embedding + "no mask".  So the
keys, values and queries of layer 1 are computed once.  After layer 1 a position p holds

    keys₁ = gain₁ ⊙ s₁·(x̃ + Σᵣ aᵣ·vᵣ) + shift₁        (x̃: x and the output's bias, centred)

with a prompt's own few vectors vᵣ and their weights aᵣ at p (``two_way``).  The part in x̃ is linear up to the
factor s₁, so its product with every later projection, and its inner products with what a prompt adds (vᵣ is a token's
head after an output projection), are computed once as well.  After layer 2 the same holds for x̂ = gain₁ ⊙ x̃, centred.

SAM 2 adds two finer maps of the image to the outputs of the upscaling convolutions.  They are the same for all prompts,
mask prompt or not, and so are the convolutions' biases: their sums replace the biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from maskfleet.worker.sam.fast.folding import FoldedDecoder, Reading, centred, out_projection


@dataclass(frozen=True, slots=True)
class ImageKV:
    """The image's own part in a reading: keys (H, d, P), values (H, P, d)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class UpscaleBias:
    """What the upscaling convolutions add at each output: their bias, in SAM 2 plus a finer map of the image.

    first: (2, P, 2·c4), by row of output.  second: (2, 2, 2·P, 2·c8), by row of the first one's output, and by row of
    its own.  Without finer maps these are views of one bias.
    """

    first: Tensor
    second: Tensor


@dataclass(frozen=True, slots=True)
class ImageState:
    """Tables over an image's P = h·w positions.

    embedding: (1, C, h, w), what they were computed from; prompts with a mask start from it again.
    layer1: keys (H, P, d) here, as fused attention wants them, and values (H, P, d).  queries1, queries2: (H, d, P).
    sq_norm1, sq_norm2: (P,), the square of x̃ and of x̂.  inner1: (H, d, P), x̃ on the out_proj of layer 1; inner2: the
    same of x̂ on the out_projs of layers 1 and 2.  inner2_shift: (P,), x̂ on shift₂.  layer2, final: x̃ and x̂ as read
    there.  upscaled: (2, P, 2·c4), x̂ through the first transposed convolution, by row of its output; upscale_bias: to
    it.
    """

    embedding: Tensor
    size_hw: tuple[int, int]
    layer1: ImageKV
    queries1: Tensor
    sq_norm1: Tensor
    inner1: Tensor
    layer2: ImageKV
    queries2: Tensor
    sq_norm2: Tensor
    inner2: tuple[Tensor, Tensor]
    inner2_shift: Tensor
    final: ImageKV
    upscaled: Tensor
    upscale_bias: UpscaleBias


def image_state(
    folded: FoldedDecoder, decoder: Any, embedding: Tensor, dense: Tensor, upscale_bias: UpscaleBias
) -> ImageState:
    """Prepare an image.

    decoder: the one that was folded; embedding: (1, C, h, w); dense: (1, C, h or 1, w or 1), the mask prompt or the
    encoding of "no mask"; upscale_bias: the image's finer maps, or biases_alone if the decoder uses none.
    """
    first = decoder.transformer.layers[0]
    reading, asking = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    x = (embedding + dense)[0].flatten(1).t().contiguous()
    at_place = x + folded.positions
    own1 = centred(x + out_projection(asking).bias)
    own2 = centred(own1 * folded.gain1)
    by_head = (len(x), folded.heads, -1)
    return ImageState(
        embedding=embedding,
        size_hw=(embedding.shape[-2], embedding.shape[-1]),
        layer1=ImageKV(
            linear(at_place, reading.k_proj.weight, reading.k_proj.bias).view(by_head).transpose(0, 1).contiguous(),
            linear(x, reading.v_proj.weight, reading.v_proj.bias).view(by_head).transpose(0, 1).contiguous(),
        ),
        queries1=linear(at_place, asking.q_proj.weight, asking.q_proj.bias).view(by_head).permute(1, 2, 0).contiguous(),
        sq_norm1=own1.square().sum(1),
        inner1=_through(folded.out_proj1, own1),
        layer2=_image_kv(folded.layer2, own1),
        queries2=_through(folded.query2, own1),
        sq_norm2=own2.square().sum(1),
        inner2=(_through(folded.out_proj1 * folded.gain1, own2), _through(folded.out_proj2, own2)),
        inner2_shift=own2 @ folded.shift2,
        final=_image_kv(folded.final, own2),
        upscaled=torch.matmul(own2, folded.upscale1),
        upscale_bias=upscale_bias,
    )


def biases_alone(folded: FoldedDecoder) -> UpscaleBias:
    """Return what a decoder without finer maps adds."""
    positions = len(folded.positions)
    return UpscaleBias(
        folded.upscale1_bias[:, None].expand(-1, positions, -1),
        folded.upscale2_bias.expand(2, 2, 2 * positions, -1),
    )


def with_finer_maps(folded: FoldedDecoder, twice: Tensor, four_times: Tensor) -> UpscaleBias:
    """Add maps of the image, (1, c4, 2h, 2w) and (1, c8, 4h, 4w), to the biases."""
    return UpscaleBias(
        _blocks(twice, rows=2) + folded.upscale1_bias[:, None],
        _blocks(four_times, rows=4).view(2, 2, -1, len(folded.upscale2_bias)) + folded.upscale2_bias,
    )


def _blocks(finer: Tensor, rows: int) -> Tensor:
    """Lay out a map like the upscaling's outputs: for each row of a block, the blocks' pixels in pairs.

    finer: (1, c, rows·h, 2·w).  Returns (rows, h·w, 2·c).
    """
    channels, height, width = finer.shape[1:]
    by_row = finer[0].view(channels, height // rows, rows, width // 2, 2)
    return by_row.permute(2, 1, 3, 4, 0).reshape(rows, -1, 2 * channels)


def _image_kv(reading: Reading, own: Tensor) -> ImageKV:
    return ImageKV(_through(reading.key, own), _through(reading.value, own).transpose(1, 2).contiguous())


def _through(weight: Tensor, own: Tensor) -> Tensor:
    """Project positions by head.  weight: (H, d, C); own: (P, C).  Returns (H, d, P)."""
    heads, width, channels = weight.shape
    return (weight.reshape(-1, channels) @ own.t()).view(heads, width, -1)
