"""The steps of a job that take time: embedding and decoding, counted and timed, with somebody who looks on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from jobs.status import Stage
from worker.batches import Halving
from worker.crops import Crop
from worker.decoder import Candidates
from worker.doubt import ALIKE, settle
from worker.drafts import Drafts
from worker.embedding import Embedding
from worker.images import Photo
from worker.masks import Chosen
from worker.model import SegmentationModel
from worker.prompts import PromptBatch


@dataclass(frozen=True, slots=True)
class SegmentMetrics:
    """What the work was and how long it took.  points: prompts decoded; points_per_batch: as it
    was used; candidates: masks measured; decoded_again: prompts decoded once more, for their pixels in doubt."""

    embed_s: float
    decode_s: float
    points: int
    batches: int
    points_per_batch: int
    candidates: int
    crops: int
    decoded_again: int


class Watch(Protocol):
    """Looks on, and may raise to stop the job: cancellation, a time limit, another attempt."""

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


class Work:
    """One job's work: does each step, counts and times it, and tells the watch."""

    def __init__(self, watch: Watch, batches: int, points_per_batch: int) -> None:
        self._watch = watch
        self._halving = Halving(points_per_batch)
        self._batches = batches
        self._done = self._points = self._candidates = self._crops = self._again = 0
        self._embed_s = self._decode_s = 0.0

    def embed(self, model: SegmentationModel, photo: Photo, crop: Crop) -> Embedding:
        """Embed a part of the photo."""
        self._watch.stage(Stage.EMBEDDING)
        started = time.perf_counter()
        left, top, right, bottom = crop.box_xyxy
        embedding = model.family.embed(photo.pixels[top:bottom, left:right])
        self._embed_s += time.perf_counter() - started
        self._crops += 1
        return embedding

    def decoded(
        self, decode: Callable[[PromptBatch], Candidates], batches: Iterable[PromptBatch], found: Sized
    ) -> Iterator[tuple[PromptBatch, Candidates]]:
        """Decode one batch after the other; the watch hears of each that is done, and of the masks found."""
        self._watch.stage(Stage.DECODING)
        self._watch.batch(self._done, self._batches, len(found))
        for batch in batches:
            yield from self._timed(decode, batch)
            self._done += 1
            self._points += len(batch.indices)
            self._watch.batch(self._done, self._batches, len(found))

    def settle(
        self,
        model: SegmentationModel,
        embedding: Embedding,
        found: Drafts,
        *,
        first: int = 0,
        together: int = ALIKE,
        multimask: bool = True,
    ) -> None:
        """Let the library's decoder settle the pixels in doubt of one embedding's masks, where ours is another.

        embedding: as the family gives it for that decoder.
        """
        if model.family.rounds_otherwise:
            decode = partial(model.family.decode_with_library, embedding, multimask=multimask)
            settle(found, partial(self._decoded_again, decode, found), first, together)

    def _decoded_again(
        self, decode: Callable[[PromptBatch], Candidates], found: Sized, batches: Iterable[PromptBatch]
    ) -> Iterator[tuple[PromptBatch, Candidates]]:
        for batch in batches:
            yield from self._timed(decode, batch)
            self._again += len(set(batch.indices))
            self._watch.batch(self._done, self._batches, len(found))

    def _timed(
        self, decode: Callable[[PromptBatch], Candidates], batch: PromptBatch
    ) -> Iterator[tuple[PromptBatch, Candidates]]:
        started = time.perf_counter()
        yield from self._halving.decode(decode, batch)
        self._decode_s += time.perf_counter() - started

    def chosen(self, chosen: Chosen) -> Chosen:
        """Count the candidates whose masks are looked at."""
        self._candidates += len(chosen.rows)
        return chosen

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
        )
