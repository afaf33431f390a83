"""The steps of a job that take time, embedding and decoding: counted, timed and reported to a watch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.jobs.status import Stage
from maskfleet.worker.candidates.keeping import Keeping
from maskfleet.worker.device_lock import NOT_SHARED, DeviceLock
from maskfleet.worker.image.decode import AnyPhoto
from maskfleet.worker.masks.borderline import MAX_BORDERLINE_PIXELS
from maskfleet.worker.masks.choice import Chosen
from maskfleet.worker.masks.pending import LOGITS_WINDOW_BYTES, PendingMasks
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.crops import Crop
from maskfleet.worker.sam.embedding import Embedding
from maskfleet.worker.sam.model import SegmentationModel, batch_that_fits
from maskfleet.worker.sam.oom_halving import BatchHalving
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.sam.reference import BatchSlot
from maskfleet.worker.segmentation import SegmentMetrics
from maskfleet.worker.stages import StageName, note_halvings, stage, turns


class KnownEmbedding(Protocol):
    """The embedding of one image, which an earlier job may have left and later ones may find."""

    def find(self, size_wh: tuple[int, int]) -> tuple[Embedding, EmbeddingOrigin] | None: ...

    def keep(self, embedding: Embedding) -> None: ...


class Watch(Protocol):
    """Receives progress, and may raise to stop the job: cancellation, a time limit, another attempt."""

    def stage(self, stage: Stage) -> None: ...

    def batch(self, done: int, total: int, masks: int) -> None:
        """Called before the first batch and after each, also of prompts decoded again, which are not counted as done.

        masks: found so far; until a crop's last batch before suppression.
        """


class _Silent:
    def stage(self, stage: Stage) -> None:
        pass

    def batch(self, done: int, total: int, masks: int) -> None:
        pass


SILENT: Watch = _Silent()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits for a job's memory and for its difference from the library's masks.

    borderline_pixels: how many a mask may have before its prompt is decoded again.  logits_window_bytes: logits that
    masks may hold until they are written.
    """

    borderline_pixels: int = MAX_BORDERLINE_PIXELS
    logits_window_bytes: int = LOGITS_WINDOW_BYTES


BOUNDS = Bounds()


class Steps:
    """One job's work on a model: does each step, counts and times it, and reports to the watch.

    points_per_batch: as many of those that were asked for as fit.  known: that of the whole image; None if it is not
    kept.  pending: the masks found so far.  keeping: the candidates, if the job keeps them.  device_lock: taken before
    the device is used, where a block wants it.
    """

    def __init__(
        self,
        model: SegmentationModel,
        points_per_batch: int,
        watch: Watch,
        bounds: Bounds,
        known: KnownEmbedding | None = None,
        keeping: Keeping | None = None,
        device_lock: DeviceLock = NOT_SHARED,
    ) -> None:
        self.model = model
        self.bounds = bounds
        self.points_per_batch = batch_that_fits(model, points_per_batch)
        self.pending = PendingMasks(bounds.logits_window_bytes)
        self.keeping = keeping
        self.device_lock = device_lock
        self._watch = watch
        self._known = known
        self._origin = EmbeddingOrigin.COMPUTED
        self._halving = BatchHalving(self.points_per_batch)
        self._batches = 0
        self._done = self._points = self._candidates = self._crops = self._again = 0
        self._embed_s = self._decode_s = 0.0

    def expect(self, batches: int) -> None:
        """Set how many batches there are in all, before the first."""
        self._batches = batches

    def embed(self, photo: AnyPhoto, crop: Crop) -> Embedding:
        """Embed a part of the photo; the whole only if no earlier job has."""
        self._watch.stage(Stage.EMBEDDING)
        self._crops += 1
        known = self._known if crop.box_xyxy == (0, 0, *photo.size_wh) else None
        started = time.perf_counter()
        if known is not None and (found := known.find(photo.size_wh)):
            embedding, self._origin = found
            self._embed_s += time.perf_counter() - started
            self.device_lock.take(self._check)
            return embedding
        left, top, right, bottom = crop.box_xyxy
        pixels = photo.pixels[top:bottom, left:right]  # perhaps fetched only now
        self.device_lock.take(self._check)
        started = time.perf_counter()
        with stage(StageName.EMBED):
            embedding = self.model.family.embed(pixels)
        self._embed_s += time.perf_counter() - started
        if known is not None:
            known.keep(embedding)
        return embedding

    def decode(
        self, embedding: Embedding, batches: Iterable[PromptBatch], *, multimask: bool = True
    ) -> Iterator[tuple[PromptBatch, Candidates]]:
        """Decode the batches one after another."""

        def decode(part: PromptBatch) -> Candidates:
            with decoding.turn():
                return self.model.family.decode(embedding, part, multimask=multimask).scores_on_host()

        self._watch.stage(Stage.DECODING)
        self._watch.batch(self._done, self._batches, len(self.pending))
        with turns(StageName.DECODE_PROMPTS) as decoding, self._counted_halvings():
            for batch in batches:
                started = time.perf_counter()
                yield from self._halving.decode(decode, batch)
                self._decode_s += time.perf_counter() - started
                self._done += 1
                self._points += len(batch.indices)
                self._watch.batch(self._done, self._batches, len(self.pending))

    @contextmanager
    def _counted_halvings(self) -> Iterator[None]:
        before = self._halving.halvings
        try:
            yield
        finally:
            note_halvings(self._halving.halvings - before)

    def decode_again(
        self, embedding: Embedding, prompt: PromptBatch, slot: BatchSlot, *, multimask: bool = True
    ) -> Candidates:
        """Decode one prompt with the library's decoder, as in its slot there.

        embedding: from the family's ``for_library``.
        """
        started = time.perf_counter()
        candidates = self.model.family.decode_in_slot(embedding, prompt, slot, multimask=multimask)
        self._decode_s += time.perf_counter() - started
        self._again += 1
        self._watch.batch(self._done, self._batches, len(self.pending))
        return candidates

    def count(self, chosen: Chosen) -> Chosen:
        """Count the candidates whose masks are measured, and return them."""
        self._candidates += len(chosen.rows)
        return chosen

    def _check(self) -> None:
        self._watch.stage(Stage.EMBEDDING)

    def metrics(self) -> SegmentMetrics:
        return SegmentMetrics(
            embed_s=round(self._embed_s, 4),
            decode_s=round(self._decode_s, 4),
            points=self._points,
            batches=self._done,
            points_per_batch=self._halving.points_per_batch,
            candidates=self._candidates,
            crops=self._crops,
            decoded_again=self._again,
            decoded_again_exactly=self.model.family.redecodes_exactly,
            embedding=self._origin,
        )
