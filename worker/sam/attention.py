"""The encoder's attention without its N × N bias: the library's numbers, bit for bit, in a sixteenth of the memory.

SAM's image encoder adds to each attention score a bias for the distance of the two positions in rows and another for
that in columns: bias[q, k] = (q · Rᵥ[row q, row k]) + (q · Rₕ[column q, column k]).  The library materialises it for
all heads, images and pairs of positions at once: 12 heads × 4096² × 4 bytes = 0.8 GB in each global layer of ViT-B, and
as much again while it adds.  The two parts are small (N × 64 for each head); their sum is needed only with the
scores of the current queries.  So it is computed for a few rows of queries of one head, or for a few windows, and
passed to fused attention, which treats every query separately: only the memory layout changes, not the numbers.

The tables Rᵥ and Rₕ are gathered once per model instead of in each call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.sam.modeling_sam import SamVisionAttention

#: The bias that is materialised at once: eight rows of ViT-B's 64 × 64 positions on a CPU; 4096 queries on a GPU.
_BIAS_BYTES = {"cpu": 8 * 2**20, "cuda": 64 * 2**20}


def attend_in_chunks(vision_encoder: nn.Module) -> None:
    """Replace the attention of each layer of a SamModel's vision encoder; parameters and their names are unchanged."""
    for layer in vision_encoder.layers:  # type: ignore[union-attr]  # the library ships no types
        if isinstance(layer.attn, SamVisionAttention):
            size = layer.window_size or _side(vision_encoder)
            layer.attn = ChunkedAttention(layer.attn, size)


class ChunkedAttention(nn.Module):
    """One layer's attention, over size × size positions.

    It holds the parameters of the library's module that it replaces.
    """

    def __init__(self, attention: Any, size: int) -> None:
        super().__init__()
        self.num_attention_heads = attention.num_attention_heads
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.rel_pos_h = self.rel_pos_w = None
        if attention.use_rel_pos:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w
            tables = (attention.get_rel_pos(size, size, part).detach() for part in (self.rel_pos_h, self.rel_pos_w))
            for name, table in zip(("by_row", "by_column"), tables, strict=True):
                self.register_buffer(name, table, persistent=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """Attend.  hidden_states: (B, h, w, C), images or windows.  The attention weights are never computed."""
        images, height, width, _ = hidden_states.shape
        heads = self.num_attention_heads
        qkv = self.qkv(hidden_states).view(images, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, images * heads, height * width, -1).unbind(0)
        if self.rel_pos_h is None:
            attended = scaled_dot_product_attention(query[None], key[None], value[None])[0]
        else:
            attended = self._with_bias(query, key, value, (height, width))
        merged = attended.view(images, heads, height, width, -1).permute(0, 2, 3, 1, 4).flatten(3)
        return self.proj(merged), None

    def _with_bias(self, query: Tensor, key: Tensor, value: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Attend one map and a few rows of queries at a time.  query, key, value: (B·heads, N, d)."""
        height, width = size_hw
        maps, positions, _ = query.shape
        on_grid = query.view(maps, height, width, -1)
        # Sum in the library's order: another order of the same products rounds differently.
        by_row = torch.einsum("bhwc,hkc->bhwk", on_grid, self.by_row)
        by_column = torch.einsum("bhwc,wkc->bhwk", on_grid, self.by_column)
        at_once = max(1, _BIAS_BYTES.get(query.device.type, _BIAS_BYTES["cuda"]) // (positions * query.element_size()))
        maps_at_once, rows_at_once = max(1, at_once // positions), max(1, min(height, at_once // width))
        attended = torch.empty_like(query)
        for first in range(0, maps, maps_at_once):
            some = slice(first, first + maps_at_once)
            for top in range(0, height, rows_at_once):
                rows, queries = slice(top, top + rows_at_once), slice(top * width, (top + rows_at_once) * width)
                bias = by_row[some, rows, :, :, None] + by_column[some, rows, :, None, :]
                bias = bias.flatten(3).flatten(1, 2)[None]
                attended[some, queries] = scaled_dot_product_attention(
                    query[None, some, queries], key[None, some], value[None, some], attn_mask=bias
                )[0]
        return attended


def _side(vision_encoder: Any) -> int:
    return int(vision_encoder.config.image_size // vision_encoder.config.patch_size)
