"""What a segmentation comes to: an image's masks, and how much work they were.  Needs no torch, as ``masks.mask``."""

from __future__ import annotations

from dataclasses import dataclass

from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.worker.candidates.kept import KeptCandidates
from maskfleet.worker.masks.mask import Mask


@dataclass(frozen=True, slots=True)
class SegmentMetrics:
    """How much work it was and how long it took.

    points: prompts decoded; points_per_batch: as it was used; candidates: masks measured.
    decoded_again: prompts that the library's decoder decoded again, for their borderline pixels;
    decoded_again_exactly: whether bit for bit as the library, as far as was tested on this machine.
    embedding: where that of the whole image came from.
    batches, candidates, crops: None for masks that were read again, without coco.json.
    """

    embed_s: float
    decode_s: float
    points: int
    batches: int | None
    points_per_batch: int
    candidates: int | None
    crops: int | None
    decoded_again: int
    decoded_again_exactly: bool
    embedding: EmbeddingOrigin


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The masks of a photo: in mode everything by score or, with crops, by crop (``crops_suppression``), else in the
    order of the prompts.

    candidates: those of mode everything, if the job keeps them.
    """

    size_wh: tuple[int, int]
    masks: tuple[Mask, ...]
    metrics: SegmentMetrics
    candidates: KeptCandidates | None = None
