"""Batches of prompts, decoded in smaller parts where memory does not hold the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from maskfleet.jobs.logs import get_logger
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.prompts import PromptBatch

logger = get_logger()


class Halving:
    """Decodes batches; one that memory does not hold is repeated in halves, and so are those that follow.

    points_per_batch: the most that were decoded at once, as far as is known to fit.
    """

    def __init__(self, points_per_batch: int) -> None:
        self.points_per_batch = points_per_batch

    def decode(
        self, decode: Callable[[PromptBatch], Candidates], batch: PromptBatch
    ) -> Iterator[tuple[PromptBatch, Candidates]]:
        """Decode a batch, whole or in parts.  Raises torch.OutOfMemoryError when not even one prompt fits."""
        start = 0
        while start < len(batch.indices):
            part = batch.part(start, start + self.points_per_batch)
            candidates = self._try(decode, part)
            if candidates is not None:
                yield part, candidates
                start += len(part.indices)

    def _try(self, decode: Callable[[PromptBatch], Candidates], part: PromptBatch) -> Candidates | None:
        """Decode, or halve and give None.  A method of its own: an error in hand would hold on to the memory."""
        try:
            return decode(part)
        except torch.OutOfMemoryError:
            if len(part.indices) == 1:
                raise
            self.points_per_batch = len(part.indices) // 2
            logger.warning("batch_halved", points_per_batch=self.points_per_batch)
        torch.cuda.empty_cache()  # nothing where CUDA was never used
        return None
