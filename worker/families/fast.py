"""Families whose decoder goes the fast way (``worker.fast_sam``)."""

from __future__ import annotations

from typing import Any, ClassVar

import structlog

from worker.decoder import Candidates
from worker.embedding import Embedding, Preprocessing
from worker.families.library import Family
from worker.fast_sam import HELD_ON_CPU_BYTES, FastSam
from worker.prompts import PromptBatch

_log = structlog.get_logger()


class Fast(Family):
    """The fast way; through the library where a checkpoint is built otherwise than those that are known."""

    fast_decoder: ClassVar[type[FastSam]]

    def __init__(self, network: Any, preprocessing: Preprocessing) -> None:
        super().__init__(network, preprocessing)
        reason = self.fast_decoder.unsuited(network)
        self._fast = self.fast_decoder(network) if reason is None else None
        if self._fast is None:
            _log.warning("decoding_slowly", reason=reason)
            return
        self.pads_prompts = True
        self.cpu_batch_bytes = HELD_ON_CPU_BYTES

    @property
    def point_bytes(self) -> int:
        return super().point_bytes if self._fast is None else self._fast.point_bytes

    def encode(self, values: Any) -> Any:
        embeddings = super().encode(values)
        return embeddings if self._fast is None else self._fast.image_state(embeddings)

    def decode(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        if self._fast is None:
            return super().decode(embedding, batch, multimask=multimask)
        return self._fast.decode(embedding.values, batch, multimask=multimask or not self.chooses_one)
