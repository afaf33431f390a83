"""Families that use the fast decoder (``maskfleet.worker.sam.fast.sam``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from maskfleet.jobs.logs import get_logger
from maskfleet.worker.sam.candidates import Candidates, decode_with_library
from maskfleet.worker.sam.embedding import Embedding, Preprocessing
from maskfleet.worker.sam.families.library import Family
from maskfleet.worker.sam.fast.image_state import ImageState
from maskfleet.worker.sam.fast.sam import HELD_ON_CPU_BYTES, FastSam
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.sam.reference import BatchSlot, decode_in_slot, find_copies

logger = get_logger()

#: Prompts that the library decodes at once to find out how it rounds here: as many as decoding's memory allows.
_PROBED_PROMPTS = 8
_PROBE_BYTES = 176 * 2**20


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image prepared for both decoders.  embeddings: for the library's; state: for the fast one."""

    embeddings: Any
    state: ImageState


class Fast(Family):
    """A family with a fast decoder; falls back to the library's for checkpoints of an unknown architecture."""

    fast_decoder: ClassVar[type[FastSam]]

    def __init__(self, network: Any, preprocessing: Preprocessing) -> None:
        super().__init__(network, preprocessing)
        reason = self.fast_decoder.unsuited(network)
        self._fast = self.fast_decoder(network) if reason is None else None
        self._copies: int | None = 1
        if self._fast is None:
            logger.warning("decoding_slowly", reason=reason)
            return
        self.pads_prompts = True
        self.cpu_batch_bytes = HELD_ON_CPU_BYTES

    @property
    def point_bytes(self) -> int:
        return super().point_bytes if self._fast is None else self._fast.point_bytes

    @property
    def rounds_otherwise(self) -> bool:
        """Also False with an encoder in half precision or compiled: then no decoder gives the library's digits."""
        return self._fast is not None and self.encoder_is_the_librarys

    def prepared(self, embeddings: Any) -> Any:
        return embeddings if self._fast is None else Prepared(embeddings, self._fast.image_state(embeddings))

    def decode(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        if self._fast is None:
            return super().decode(embedding, batch, multimask=multimask)
        return self._fast.decode(embedding.values.state, batch, multimask=multimask or not self.chooses_one)

    @property
    def redecodes_exactly(self) -> bool:
        return self._copies is not None

    def prepare(self) -> None:
        """Find, too, the fewest copies of a prompt that the library's decoder rounds like a batch; log if none do."""
        super().prepare()
        if not self.rounds_otherwise:
            return
        size = max(2, min(_PROBED_PROMPTS, _PROBE_BYTES // super().point_bytes))
        prompts = _points_all_over(size, self.preprocessing.input_hw)
        embeddings = self.random_embeddings(torch.Generator().manual_seed(0))
        arguments = self.image_arguments(embeddings)
        with torch.inference_mode():
            decode = partial(decode_with_library, self.network, multimask=True, **arguments)
            self._copies = find_copies(decode, prompts, self._positions_per_side**2)
        if self._copies is None:
            logger.warning("redecoding_not_exact", prompts=size, threads=torch.get_num_threads())

    def decode_in_slot(
        self, embedding: Embedding, prompt: PromptBatch, slot: BatchSlot, *, multimask: bool = True
    ) -> Candidates:
        decode = partial(self.decode_with_library, embedding, multimask=multimask)
        return decode_in_slot(
            decode, prompt, slot, copies=self._copies or 1, image_positions=self._positions_per_side**2
        )

    def for_library(self, embedding: Embedding) -> Embedding:
        return embedding if self._fast is None else replace(embedding, values=embedding.values.embeddings)


def _points_all_over(count: int, input_hw: tuple[int, int]) -> PromptBatch:
    """Return single points along the diagonal of the model's input."""
    height, width = input_hw
    shares = (torch.arange(count) + 0.5) / count
    points_xy = (shares[:, None] * torch.tensor([width, height]))[:, None]
    labels = torch.ones(count, 1, dtype=torch.int64)
    return PromptBatch(points_xy, labels, None, tuple(range(count)), ((),) * count)
