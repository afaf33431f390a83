"""An image as changed by a prompt, never materialised: a part shared by all prompts, and a few rows per prompt.

From a prompt's n tokens each of an image's P positions receives, in each of H heads, a softmax-weighted mean of n
vectors.  So what a prompt adds to the P × C image has rank H·n, some 50 against thousands of positions.  After a norm,

    keysₚ = gain ⊙ (scaleₚ·ownₚ + Σᵣ rowsᵣₚ·basisᵣ) + shift,

with own (P, C) the same for every prompt; gain and shift are in the weights (``folding``).  The keys themselves
(4 MB a prompt for ViT-B) are never computed: everything needed from them is computed from own, once for all prompts,
and from the rows.

The weights of a head add up to 1 over the tokens.  So one token's row need not be stored: it is 1 minus the others.
Its vector becomes a constant that all positions share, and is subtracted from the other tokens' vectors.  It is the
first token, which is never padding.  That leaves R = 1 + H·(n-1) rows: the constant's, then token by token, head by
head.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LowRankImage:
    """The images of B prompts.  scale: (B, P); rows: (B, R, P); basis: (B, R, C)."""

    scale: Tensor
    rows: Tensor
    basis: Tensor

    def take(self, prompts: Sequence[int]) -> LowRankImage:
        """Return those of some prompts, ascending: views if they are consecutive, else copies."""
        some = run_or_indices(prompts, self.scale.device)
        return LowRankImage(self.scale[some], self.rows[some], self.basis[some])


def run_or_indices(ascending: Sequence[int], device: torch.device) -> slice | Tensor:
    """Return indices into a device's tensor as a slice if they are consecutive, so that it is viewed and not copied."""
    first, last = ascending[0], ascending[-1]
    return slice(first, last + 1) if last - first + 1 == len(ascending) else indices(ascending, device)


def indices(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Return indices into a device's tensor.  Given as a list, they would make the host wait for the device."""
    return torch.tensor(numbers).to(device, non_blocking=True)


class Scratch:
    """Reusable memory: page faults of fresh memory cost more than the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._lent: list[tuple[Tensor, weakref.ref[Tensor]]] = []

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialised buffer; an earlier one of this name and precision is overwritten."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, device=self._device, dtype=dtype)
        return buffer[:size].view(shape)

    def lend(self, *shape: int) -> Tensor:
        """Return a buffer that belongs to the caller while this very tensor lives, and is then lent again."""
        size = math.prod(shape)
        kept = [(buffer, taken) for buffer, taken in self._lent if taken() is not None or len(buffer) >= size]
        free = next((buffer for buffer, taken in kept if taken() is None), None)
        buffer = torch.empty(size, device=self._device) if free is None else free
        lent = buffer[:size].view(shape)
        self._lent = [(other, taken) for other, taken in kept if other is not free] + [(buffer, weakref.ref(lent))]
        return lent


def by_head(tokens: Tensor, table: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Multiply each head of the tokens by that head of a table that all prompts share.

    tokens: (B, m, H, k); table: (H, k, l); out: (B, m, H, l), overwritten or added to.  One product for a single
    prompt; for many, one per head, so that the table need not be repeated.
    """
    if len(tokens) == 1:
        pairs = [(tokens[0].transpose(0, 1), table, out[0].transpose(0, 1))]
    else:
        pairs = [
            (tokens[:, :, head], table[head].expand(len(tokens), -1, -1), out[:, :, head]) for head in range(len(table))
        ]
    for left, right, product in pairs:
        if add:
            product.baddbmm_(left, right)
        else:
            torch.bmm(left, right, out=product)
    return out


def without_first_token(weights: Tensor) -> Tensor:
    """Turn a softmax over tokens into rows, in place.  weights: (B, n, H, P).  Returns (B, 1 + H·(n-1), P)."""
    prompts, tokens, heads, positions = weights.shape
    rows = weights.view(prompts, tokens * heads, positions)[:, heads - 1 :]
    rows[:, 0] = 1
    return rows


def basis_of(values: Tensor, out_proj: Tensor) -> Tensor:
    """Return what each row adds to a position, (B, R, C).  values: (B, n, H, d), of tokens; out_proj: (H, d, C)."""
    vectors = torch.einsum("bnhd,hdc->bnhc", values, out_proj)
    constant = vectors[:, :1].sum(2)
    return torch.cat([constant, (vectors[:, 1:] - vectors[:, :1]).flatten(1, 2)], dim=1)


def inner_products_of(values: Tensor, table: Tensor, out: Tensor) -> Tensor:
    """Write the inner products of the basis with the image's own part to ``out`` and return it.

    values: (B, n, H, d), of tokens; table: (H, d, P), the image's own part on the out_proj; out: (B, R, P).
    """
    prompts, tokens, heads, _ = values.shape
    torch.mm(values[:, 0].flatten(1), table.flatten(0, 1), out=out[:, 0])
    by_head(values[:, 1:] - values[:, :1], table, out=out[:, 1:].view(prompts, tokens - 1, heads, -1))
    return out
