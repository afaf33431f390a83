"""Families whose decoder goes the fast way (``worker.fast_sam``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import structlog
import torch

from worker.decoder import Candidates
from worker.embedding import Embedding, Preprocessing
from worker.families.library import Family
from worker.fast_sam import HELD_ON_CPU_BYTES, FastSam
from worker.image_state import ImageState
from worker.prompts import PromptBatch

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image for both decoders.  embeddings: as the library's takes them; state: as the fast one does."""

    embeddings: Any
    state: ImageState


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

    @property
    def rounds_otherwise(self) -> bool:
        """Half an encoder's digits are lost before any decoder's rounding matters."""
        return self._fast is not None and self.encoder_dtype is torch.float32

    def encode(self, values: Any) -> Any:
        embeddings = super().encode(values)
        return embeddings if self._fast is None else Prepared(embeddings, self._fast.image_state(embeddings))

    def decode(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        if self._fast is None:
            return super().decode(embedding, batch, multimask=multimask)
        return self._fast.decode(embedding.values.state, batch, multimask=multimask or not self.chooses_one)

    def for_library(self, embedding: Embedding) -> Embedding:
        return embedding if self._fast is None else replace(embedding, values=embedding.values.embeddings)
