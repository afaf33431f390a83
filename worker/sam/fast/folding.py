"""The mask decoder's weights, folded once per model into the form that the fast decoder uses.

SAM's two-way transformer has two layers.  In each, the few tokens of a prompt read the image (token → image), and the
image's P positions then read the tokens (image → token) and are layer-normed: keys = gain ⊙ normed + shift.  A linear
map after a norm can absorb its gain and shift:

    W·(gain ⊙ normed + shift) = (W ⊙ gain)·normed + W·shift.

A layer norm subtracts the mean; so everything that is summed before one may have its mean subtracted beforehand
("centred"), which leaves the norm only a division.  What is the same for every image, the positional encoding projected
by each attention, is projected here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any  # the library's modules ship no types

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """An attention whose keys and values come from the image: token → image, after a layer norm's gain and shift.

    key, value: (H, d, C), by head, gain folded in.  key_at: (H, d, P), the encoded positions as keys.  value_shift:
    (H, d), added to every value.  Keys need none: shifting every key alike moves all scores of a query alike, which
    does not change a softmax.
    """

    key: Tensor
    value: Tensor
    key_at: Tensor
    value_shift: Tensor


@dataclass(frozen=True, slots=True)
class FoldedDecoder:
    """The weights of the image's side, in float32.

    positions: (P, C), the positional encoding of the image.  out_proj1, out_proj2: (H, d, C), what the image takes up
    from a head of a token in layers 1 and 2, centred.  gain1: (C,).  query2: (H, d, C), the image's queries in layer 2,
    and query2_at: (H, d, P), their part from positions and shifts.  shift2: (C,), what layer 2 adds everywhere,
    centred. layer2, final: the readings after layer 1 and after layer 2.  eps1, eps2: of the norms.
    upscale1: (2, C, 2·c4), the first transposed convolution after the second norm's gain, for the upper and the lower
    row of output; upscale1_bias: (2, 2·c4).  upscale2: (2, c4, 2·c8) and upscale2_bias: (2·c8,), the second.
    """

    heads: int
    positions: Tensor
    out_proj1: Tensor
    gain1: Tensor
    eps1: float
    layer2: Reading
    query2: Tensor
    query2_at: Tensor
    out_proj2: Tensor
    shift2: Tensor
    eps2: float
    final: Reading
    upscale1: Tensor
    upscale1_bias: Tensor
    upscale2: Tensor
    upscale2_bias: Tensor


def centred(values: Tensor) -> Tensor:
    """Subtract the mean over channels.  values: (…, C)."""
    return values - values.mean(-1, keepdim=True)


def fold(decoder: Any, positions: Tensor) -> FoldedDecoder:
    """Fold the mask decoder of SAM or SAM 2, in float32.  positions: (P, C)."""
    first, second = decoder.transformer.layers
    heads = int(decoder.config.num_attention_heads)
    norm1, norm2 = first.layer_norm4, second.layer_norm4
    asking = second.cross_attn_image_to_token
    query = _rows_by_head(asking.q_proj.weight, heads)
    query_shift = query @ norm1.bias + asking.q_proj.bias.view(heads, -1)
    upscale1 = _kernel(decoder.upscale_conv1)
    upscale1_bias = decoder.upscale_conv1.bias.repeat(2) + torch.matmul(norm2.bias, upscale1)
    return FoldedDecoder(
        heads=heads,
        positions=positions,
        out_proj1=centred(_columns_by_head(out_projection(first.cross_attn_image_to_token).weight, heads)),
        gain1=norm1.weight,
        eps1=norm1.eps,
        layer2=_reading(second.cross_attn_token_to_image, norm1, positions, heads),
        query2=query * norm1.weight,
        query2_at=(query @ positions.t() + query_shift[:, :, None]).contiguous(),
        out_proj2=centred(_columns_by_head(out_projection(asking).weight, heads)),
        shift2=centred(norm1.bias + out_projection(asking).bias),
        eps2=norm2.eps,
        final=_reading(decoder.transformer.final_attn_token_to_image, norm2, positions, heads),
        upscale1=norm2.weight[:, None] * upscale1,
        upscale1_bias=upscale1_bias,
        upscale2=_kernel(decoder.upscale_conv2),
        upscale2_bias=decoder.upscale_conv2.bias.repeat(2),
    )


def out_projection(attention: Any) -> Any:
    """Return an attention's output projection, which has one name in the library's SAM and another in its SAM 2."""
    return attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj


def _reading(attention: Any, norm: Any, positions: Tensor, heads: int) -> Reading:
    key, value = (_rows_by_head(part.weight, heads) for part in (attention.k_proj, attention.v_proj))
    return Reading(
        key=key * norm.weight,
        value=value * norm.weight,
        key_at=(key @ positions.t()).contiguous(),
        value_shift=value @ norm.bias + attention.v_proj.bias.view(heads, -1),
    )


def _rows_by_head(weight: Tensor, heads: int) -> Tensor:
    """Split a projection into heads.  weight: (H·d, C).  Returns (H, d, C)."""
    return weight.view(heads, -1, weight.shape[1])


def _columns_by_head(weight: Tensor, heads: int) -> Tensor:
    """Split an output projection by heads.  weight: (C, H·d).  Returns (H, d, C)."""
    return weight.t().reshape(heads, -1, weight.shape[0])


def _kernel(convolution: Any) -> Tensor:
    """Return a transposed convolution with kernel and stride 2 as two matrices, (2, in, 2·out), one per row of output.

    Kernel and stride are equal, so no output pixel depends on two input pixels: each input pixel becomes a 2 × 2 block
    of its own, and the convolution is a matrix product.
    """
    inward, outward = convolution.weight.shape[:2]
    matrix: Tensor = convolution.weight.permute(2, 0, 3, 1).reshape(2, inward, 2 * outward)
    return matrix.contiguous()
