"""Batches of prompts, decoded in smaller parts where memory does not hold the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from maskfleet.jobs.logs import get_logger
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.prompts import PromptBatch

logger = get_logger()


class BatchHalving:
    """Decodes batches; if one does not fit in memory, it and all later ones are decoded in halves.

    points_per_batch: the largest batch that is thought to fit.
    """

    def __init__(self, points_per_batch: int) -> None:
        self.points_per_batch = points_per_batch
        #: How often memory ran out so far, and a batch was halved.
        self.halvings = 0

    def decode(
        self, decode: Callable[[PromptBatch], Candidates], batch: PromptBatch
    ) -> Iterator[tuple[PromptBatch, Candidates]]:
        """Decode a batch, whole or in parts.  Raises torch.OutOfMemoryError if not even one prompt fits."""
        start = 0
        while start < len(batch.indices):
            part = batch.part(start, start + self.points_per_batch)
            candidates = self._try(decode, part)
            if candidates is not None:
                yield part, candidates
                start += len(part.indices)

    def _try(self, decode: Callable[[PromptBatch], Candidates], part: PromptBatch) -> Candidates | None:
        """Decode, or halve and return None.  A separate method: a live exception would hold on to the memory."""
        try:
            return decode(part)
        except torch.OutOfMemoryError:
            if len(part.indices) == 1:
                raise
            self.points_per_batch = len(part.indices) // 2
            self.halvings += 1
            logger.warning("batch_halved", points_per_batch=self.points_per_batch)
        torch.cuda.empty_cache()  # does nothing if CUDA was never used
        return None
