"""Decode one prompt with the library's decoder, with exactly the rounding that it has in the library's own batch.

The matrix multiplication kernel is chosen by the number of rows, and kernels sum in different orders.  In SAM's
decoders only the products over prompts' tokens have few rows; those over the image have thousands for every prompt and
round alike whatever the number of prompts.  So one prompt is decoded by itself, while the products over its tokens get
as many rows as the whole batch has, with zeros in place of the other prompts.

With MKL limited to SSE 4.2 on several threads two copies of the prompt are needed for that, elsewhere one was enough.
Nothing is taken for granted: ``find_copies`` tests it on the present machine when a model is loaded.
See docs/decisions/0034-borderline-masks-are-decoded-again.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.prompts import PromptBatch, join

#: The most copies of a prompt to decode together if one alone rounds differently.  Four of ViT-B's take 160 MB, which
#: is what decoding may use besides the weights.
_MOST_COPIES = 4
#: Sizes of batches that are tried, up to the size of the one given: kernels may change from one to the next.
_PROBED_SIZES = (2, 3, 5, 8)
#: The ways in which the library multiplies matrices.
_PRODUCTS = frozenset({torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__})

Decode = Callable[[PromptBatch], Candidates]


@dataclass(frozen=True, slots=True)
class BatchSlot:
    """Where the library decodes a prompt.  row: its row in the batch; size: the number of prompts in the batch."""

    row: int
    size: int


ALONE = BatchSlot(0, 1)


def grid_slot(index: int, points: int, points_per_batch: int) -> BatchSlot:
    """Return the slot of a grid's point in the pipeline's batches.  points: the number of points in the grid."""
    start = index - index % points_per_batch
    return BatchSlot(index - start, min(points_per_batch, points - start))


def decode_in_slot(
    decode: Decode, prompt: PromptBatch, slot: BatchSlot, *, copies: int, image_positions: int
) -> Candidates:
    """Decode one prompt with the rounding that it has in its slot.

    decode: runs the library's decoder.  copies: from ``find_copies``.  image_positions: of the embedding, h·w.
    Returns candidates whose first row is the prompt's; the other rows are its copies.
    """
    if slot.size == 1:
        return decode(prompt)
    copies = min(copies, slot.size)
    with _RowsOfWholeBatch(slot, copies, image_positions):
        return decode(join([prompt] * copies))


def find_copies(decode: Decode, prompts: PromptBatch, image_positions: int) -> int | None:
    """Find the fewest copies of a prompt that round like whole batches, on this machine with its threads.

    prompts: a batch of two or more; smaller ones are tried with its first prompts.
    Returns None if no number up to ``_MOST_COPIES`` does.
    """
    sizes = sorted({min(size, len(prompts.indices)) for size in _PROBED_SIZES})
    wholes = {size: decode(prompts.part(0, size)) for size in sizes}

    def is_alike(size: int, row: int, copies: int) -> bool:
        prompt, slot = prompts.part(row, row + 1), BatchSlot(row, size)
        one = decode_in_slot(decode, prompt, slot, copies=copies, image_positions=image_positions)
        return _is_row(one, wholes[size], row)

    for copies in range(1, min(_MOST_COPIES, sizes[-1]) + 1):
        if all(is_alike(size, row, copies) for size in sizes for row in (0, size - 1)):
            return copies
    return None


def _is_row(candidates: Candidates, whole: Candidates, row: int) -> bool:
    """Return True if the first row of candidates equals a row of the whole batch, bit for bit."""
    columns = torch.arange(candidates.predicted_iou.shape[1])
    ours, theirs = (one.logits(torch.full_like(columns, at), columns) for one, at in ((candidates, 0), (whole, row)))
    return torch.equal(ours, theirs) and torch.equal(candidates.predicted_iou[0], whole.predicted_iou[row])


class _RowsOfWholeBatch(TorchFunctionMode):
    """Computes products over the tokens of a prompt's copies with as many rows as the whole batch has."""

    def __init__(self, slot: BatchSlot, copies: int, image_positions: int) -> None:
        super().__init__()
        self._slot = slot
        self._copies = copies
        self._image_positions = image_positions

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _PRODUCTS or not self._is_over_tokens(*args[:2]):
            return func(*args, **(kwargs or {}))
        tokens, *others = args
        made = func(self._in_batch(tokens), *others, **(kwargs or {}))
        return made[:, self._slot.row].unsqueeze(1).repeat(1, self._copies, *[1] * (made.dim() - 2))

    def _is_over_tokens(self, values: Tensor, weights: Tensor) -> bool:
        """Return True for tokens, (1, copies, …), False for the image's positions, (copies, 1, h·w, C)."""
        over_image = values.dim() == 4 and values.shape[2] == self._image_positions
        return weights.dim() == 2 and values.dim() > 2 and values.shape[:2] == (1, self._copies) and not over_image

    def _in_batch(self, tokens: Tensor) -> Tensor:
        """Put a prompt's tokens in their row of zeros, with the whole batch's strides, which also choose the kernel."""
        size, (_, step, *inner) = self._slot.size, tokens.stride()
        room = torch.zeros(size * max(step, tokens[0, 0].numel()), dtype=tokens.dtype, device=tokens.device)
        batch = room.as_strided((1, size, *tokens.shape[2:]), (size * step, step, *inner))
        batch[0, self._slot.row] = tokens[0, 0]
        return batch
