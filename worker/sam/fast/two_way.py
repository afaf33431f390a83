"""SAM's two-way transformer over a low-rank image: the same tokens and image as the library's, with less work.

Layer 1 (keys₀ = the image, shared):  tokens read keys₀;  keys₁ = norm(keys₀ + what keys₀ reads from the tokens).
Layer 2:  tokens read keys₁;  keys₂ = norm(keys₁ + what keys₁ reads).  Final: the output tokens read keys₂.

With keys = scale·own + rowsᵀ·basis (``low_rank``; gains and shifts are in the weights):

- The score of a query q at a position is scale·(q·W·own) + (q·W·basisᵀ)·rows + (q·W·position).  The first and the last
  bracket are tables; the middle one is a vector of R numbers for each query.
- Reading with weights a gives Σₚ aₚ·keysₚ·W = (a·scale)·(own·W) + (a·rowsᵀ)·(basis·W).
- The norm needs the variance of each position's channels.  All parts being centred, that is the square of a sum:
  own·own (a table), 2·scale·own·basis (tokens through a table) and basis·basisᵀ between the rows.

The final attention runs at once only for the IoU token and SAM 2's object-score token; for mask tokens it waits until
their mask is wanted.  That one is in double precision: of all steps this is the one whose rounding shows in a mask's
logits, and with it they are as close to the exact ones as the library's (``tests/worker/test_precision.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from maskfleet.worker.sam.fast.core_pool import CorePool
from maskfleet.worker.sam.fast.folding import FoldedDecoder, Reading, centred, out_projection
from maskfleet.worker.sam.fast.image_state import ImageKV, ImageState
from maskfleet.worker.sam.fast.low_rank import (
    LowRankImage,
    Scratch,
    basis_of,
    by_head,
    inner_products_of,
    run_or_indices,
    without_first_token,
)
from maskfleet.worker.sam.fast.tokens import Tokens


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """The tokens and the image after both layers.  queries: (N, n, C), the tokens plus their initial embeddings."""

    tokens: Tensor
    queries: Tensor
    image: LowRankImage


@dataclass(frozen=True, slots=True)
class LastReading:
    """The final attention, after both layers, the norm after it, and its folded weights; all in one precision."""

    attention: Any
    norm: Any
    folded: Reading

    @property
    def dtype(self) -> torch.dtype:
        return self.folded.key.dtype

    def in_double_precision(self) -> LastReading:
        weights = self.folded
        return LastReading(
            copy.deepcopy(self.attention).double(),
            copy.deepcopy(self.norm).double(),
            Reading(
                key=weights.key.double(),
                value=weights.value.double(),
                key_at=weights.key_at.double(),
                value_shift=weights.value_shift.double(),
            ),
        )


class TwoWay:
    """The transformer of one model, in float32.  at_once: prompts whose image side is processed together."""

    def __init__(
        self, decoder: Any, folded: FoldedDecoder, scratch: Scratch, core_pool: CorePool, at_once: int
    ) -> None:
        self._transformer = decoder.transformer
        self._folded = folded
        attention, norm = self._transformer.final_attn_token_to_image, self._transformer.layer_norm_final_attn
        self._last = LastReading(attention, norm, folded.final)
        self._last_exactly = self._last.in_double_precision()
        self._scratch = scratch
        self._core_pool = core_pool
        self._at_once = at_once

    def run_layers(self, state: ImageState, tokens: Tokens) -> LayerOutput:
        """Run both layers."""
        first, second = self._transformer.layers
        start, padded = tokens.values, tokens.padded
        # Layer 1: the library does not add the tokens' initial embeddings in its self-attention.
        queries = _norm(first.layer_norm1, self._among_tokens(first.self_attn, start, start, padded))
        queries = queries + self._read_shared(first.cross_attn_token_to_image, queries + start, state.layer1)
        queries = _token_mlp(first, queries)
        keys, values = self._keys_values(first.cross_attn_image_to_token, queries, start)
        room = self._room_for_rows(keys, len(state.sq_norm1))
        image = self._take_up_first(state, room, keys, values, padded)
        # Layer 2
        asking = queries + start
        queries = queries + self._among_tokens(second.self_attn, asking, queries, padded)
        queries = _norm(second.layer_norm1, queries)
        reading = second.cross_attn_token_to_image
        queries = queries + self._read(
            reading, self._folded.layer2, state.layer2, queries + start, image, range(len(start))
        )
        queries = _token_mlp(second, queries)
        keys2, values2 = self._keys_values(second.cross_attn_image_to_token, queries, start)
        image = self._take_up_second(state, room, image, values, keys2, values2, padded)
        return LayerOutput(queries, queries + start, image)

    def final_attention(
        self,
        state: ImageState,
        layer_output: LayerOutput,
        prompts: Sequence[int],
        chosen: Tensor,
        *,
        exactly: bool = False,
    ) -> Tensor:
        """Run the final attention for tokens of some prompts.

        prompts: U of them, ascending; chosen: (U, k), the places of their tokens; exactly: in double precision.
        Returns (U, k, C), in float32.
        """
        last = self._last_exactly if exactly else self._last
        places = chosen[:, :, None].expand(-1, -1, layer_output.tokens.shape[2])
        some = run_or_indices(prompts, chosen.device)
        asking, tokens = (
            given[some].gather(1, places).to(last.dtype) for given in (layer_output.queries, layer_output.tokens)
        )
        image_kv = ImageKV(state.final.keys.to(last.dtype), state.final.values.to(last.dtype))
        read = self._read(last.attention, last.folded, image_kv, asking, layer_output.image, prompts)
        return _norm(last.norm, tokens + read).float()

    def _heads(self, tokens: Tensor) -> Tensor:
        """Reshape (N, n, H·d) to (N, n, H, d)."""
        return tokens.view(*tokens.shape[:2], self._folded.heads, -1)

    def _among_tokens(self, attention: Any, asking: Tensor, values: Tensor, padded: Tensor | None) -> Tensor:
        query, key, value = (
            self._heads(linear(given, part.weight, part.bias)).transpose(1, 2)
            for given, part in (
                (asking, attention.q_proj),
                (asking, attention.k_proj),
                (values, attention.v_proj),
            )
        )
        seen = None if padded is None else ~padded[:, None, None, :]
        read = scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return _out(attention, read.transpose(1, 2).flatten(2))

    def _read_shared(self, attention: Any, asking: Tensor, image_kv: ImageKV) -> Tensor:
        """Layer 1: all prompts' tokens read the same image, as if they were one prompt's."""
        query = self._heads(linear(asking, attention.q_proj.weight, attention.q_proj.bias)).flatten(0, 1)
        read = scaled_dot_product_attention(query.transpose(0, 1)[None], image_kv.keys[None], image_kv.values[None])
        return _out(attention, read[0].transpose(0, 1).reshape(*asking.shape[:2], -1))

    def _read(
        self,
        attention: Any,
        folded: Reading,
        image_kv: ImageKV,
        asking: Tensor,
        image: LowRankImage,
        whose: Sequence[int],
    ) -> Tensor:
        """Layer 2 and final: each prompt's tokens read its own image, in the tokens' precision.

        asking: (U, m, C), the tokens of the prompts ``whose``.
        """
        query = self._heads(linear(asking, attention.q_proj.weight, attention.q_proj.bias))
        query = query * query.shape[-1] ** -0.5
        dtype = asking.dtype
        basis = image.basis[run_or_indices(whose, asking.device)].to(dtype)
        on_basis = torch.einsum("bmhd,hdc->bmhc", query, folded.key).flatten(1, 2) @ basis.transpose(1, 2)
        from_rows = torch.empty_like(on_basis)
        read = torch.empty_like(query)
        prompts, asked, heads, _ = query.shape
        positions = image.rows.shape[2]

        def work(part: slice, scratch: Scratch) -> None:
            owners = run_or_indices(whose[part], asking.device)
            rows, scale = image.rows[owners].to(dtype), image.scale[owners].unsqueeze(1).to(dtype)
            scores = scratch.take("scores", len(rows), asked, heads, positions, dtype=dtype)
            flat = scores.view(len(rows), asked * heads, positions)
            by_head(query[part], image_kv.keys, out=scores)
            flat.mul_(scale).baddbmm_(on_basis[part], rows)
            by_head(query[part], folded.key_at, out=scores, add=True)
            torch.softmax(flat, -1, out=flat)
            torch.bmm(flat, rows.transpose(1, 2), out=from_rows[part])
            flat.mul_(scale)
            by_head(scores, image_kv.values, out=read[part])

        self._core_pool.each(work, self._parts(prompts))
        values = torch.einsum("brc,hdc->bhrd", basis, folded.value)
        read += torch.einsum("bmhr,bhrd->bmhd", from_rows.view(prompts, asked, heads, -1), values)
        return _out(attention, (read + folded.value_shift).flatten(2))

    def _keys_values(self, attention: Any, queries: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens' keys, scaled, and values for the image to read; each (N, n, H, d)."""
        keys = self._heads(linear(queries + start, attention.k_proj.weight, attention.k_proj.bias))
        values = self._heads(linear(queries, attention.v_proj.weight, attention.v_proj.bias))
        return keys * keys.shape[-1] ** -0.5, values

    def _room_for_rows(self, keys: Tensor, positions: int) -> Tensor:
        """Return memory for the rows of both layers, (N, 2·R, P)."""
        prompts, tokens, heads, _ = keys.shape
        return self._scratch.lend(prompts, 2 * (1 + heads * (tokens - 1)), positions)

    def _take_up_first(
        self, state: ImageState, room: Tensor, keys: Tensor, values: Tensor, padded: Tensor | None
    ) -> LowRankImage:
        """Layer 1: the image reads from the tokens, and is normalised."""
        basis = basis_of(values, self._folded.out_proj1)
        gram = basis @ basis.transpose(1, 2)
        prompts, rank, channels = basis.shape
        positions = room.shape[2]
        scale = torch.empty(prompts, positions, device=basis.device)

        def work(part: slice, scratch: Scratch) -> None:
            weights = scratch.take("weights", *keys[part].shape[:3], positions)
            by_head(keys[part], state.queries1, out=weights)
            rows = _softmax_rows(weights, padded, part)
            inner = scratch.take("inner", *rows.shape)
            inner_products_of(values[part], state.inner1, out=inner)
            inner.baddbmm_(gram[part], rows, beta=2.0)
            sq_norm = inner.mul_(rows).sum(1).add_(state.sq_norm1)
            torch.rsqrt(sq_norm.div_(channels).add_(self._folded.eps1), out=scale[part])
            torch.mul(rows, scale[part, None], out=room[part, :rank])

        self._core_pool.each(work, self._parts(prompts))
        return LowRankImage(scale, room[:, :rank], basis)

    def _take_up_second(
        self,
        state: ImageState,
        room: Tensor,
        image: LowRankImage,
        values1: Tensor,
        keys: Tensor,
        values: Tensor,
        padded: Tensor | None,
    ) -> LowRankImage:
        """Layer 2: the same on top of layer 1's rows, which are rescaled in place."""
        folded = self._folded
        on_basis = torch.einsum("bnhd,hdc->bnhc", keys, folded.query2).flatten(1, 2) @ image.basis.transpose(1, 2)
        older, newer = centred(image.basis * folded.gain1), basis_of(values, folded.out_proj2)
        newer[:, 0] += folded.shift2
        rank, channels = older.shape[1:]
        gram11, gram12, gram22 = (a @ b.transpose(1, 2) for a, b in ((older, older), (older, newer), (newer, newer)))
        positions = room.shape[2]

        def work(part: slice, scratch: Scratch) -> None:
            rows1, scale = image.rows[part], image.scale[part]
            weights = scratch.take("weights", *keys[part].shape[:3], positions)
            flat = weights.view(len(scale), -1, positions)
            by_head(keys[part], state.queries2, out=weights)
            flat.mul_(scale[:, None]).baddbmm_(on_basis[part], rows1)
            by_head(keys[part], folded.query2_at, out=weights, add=True)
            rows2 = _softmax_rows(weights, padded, part)
            inner = scratch.take("inner", len(scale), 2 * rank, positions)
            with_older, with_newer = inner[:, :rank], inner[:, rank:]
            inner_products_of(values1[part], state.inner2[0], out=with_older)
            inner_products_of(values[part], state.inner2[1], out=with_newer)
            with_newer[:, 0] += state.inner2_shift
            inner.mul_(2 * scale[:, None])
            # A square contains each pair of an older and a newer row twice: both count with the older.
            with_older.baddbmm_(gram11[part], rows1).baddbmm_(gram12[part], rows2, alpha=2.0)
            with_newer.baddbmm_(gram22[part], rows2)
            sq_norm = with_older.mul_(rows1).sum(1).add_(with_newer.mul_(rows2).sum(1))
            sq_norm.addcmul_(scale.square(), state.sq_norm2)
            factor = torch.rsqrt(sq_norm.div_(channels).add_(folded.eps2))
            scale.mul_(factor)
            rows1.mul_(factor[:, None])
            torch.mul(rows2, factor[:, None], out=room[part, rank:])

        self._core_pool.each(work, self._parts(len(keys)))
        return LowRankImage(image.scale, room, torch.cat([older, newer], dim=1))

    def _parts(self, prompts: int) -> Iterator[slice]:
        return (slice(start, min(start + self._at_once, prompts)) for start in range(0, prompts, self._at_once))


def _softmax_rows(scores: Tensor, padded: Tensor | None, part: slice) -> Tensor:
    """Turn scores into the tokens' weights at each position, as rows, in place.  scores: (B, n, H, P)."""
    if padded is not None:
        scores.masked_fill_(padded[part, :, None, None], -torch.inf)
    return without_first_token(torch.softmax(scores, 1, out=scores))


def _out(attention: Any, read: Tensor) -> Tensor:
    projection = out_projection(attention)
    return linear(read, projection.weight, projection.bias)


def _norm(norm: Any, values: Tensor) -> Tensor:
    return layer_norm(values, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _token_mlp(layer: Any, queries: Tensor) -> Tensor:
    queries = _norm(layer.layer_norm2, queries)
    return _norm(layer.layer_norm3, queries + layer.mlp(queries))
