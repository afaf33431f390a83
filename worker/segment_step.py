"""From an image to what is written of it: the step of an attempt that needs the model."""

from __future__ import annotations

from maskfleet.jobs.schema.record import Metrics, ModelSpec
from maskfleet.jobs.schema.spec import EmbedJob, EverythingJob, Priority
from maskfleet.worker.device_lock import NOT_SHARED, DeviceLock
from maskfleet.worker.embeddings.cache import EmbeddingCache, ImageEmbedding
from maskfleet.worker.embeddings.job_image import JobImage
from maskfleet.worker.output.artifacts import Segmented
from maskfleet.worker.output.result import segmented
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import MaskInputs
from maskfleet.worker.segment import embed_only, segment
from maskfleet.worker.segmentation import SegmentMetrics
from maskfleet.worker.steps import Watch


def segment_and_format(
    model: SegmentationModel,
    photo: JobImage,
    spec: ModelSpec,
    watch: Watch,
    mask_inputs: MaskInputs,
    *,
    embeddings: EmbeddingCache | None = None,
    device_lock: DeviceLock = NOT_SHARED,
) -> Segmented:
    """Segment an image as a job asks; the files that it wants of it are made one at a time, as they are written.

    embeddings: of images that were encoded before; None if none are kept.  device_lock: of the model's device, if
    several workers share it.
    """
    known = _place_of(photo, spec, embeddings)
    keep = known.write if known is not None and _is_written(spec) else None
    if isinstance(spec, EmbedJob):
        return Segmented((), _metrics(embed_only(photo, model, watch, known)), iter(()), keep)
    segmentation = segment(photo, spec, model, watch, mask_inputs, known=known, device_lock=device_lock)
    return segmented(photo, spec, segmentation, _metrics(segmentation.metrics), keep)


def _place_of(photo: JobImage, spec: ModelSpec, embeddings: EmbeddingCache | None) -> ImageEmbedding | None:
    """Return where the image's embedding is kept; None if it is not, as when crops of it are embedded, too."""
    if embeddings is None or (isinstance(spec, EverythingJob) and spec.params.crops_n_layers):
        return None
    return embeddings.of(photo.tenant, photo.sha256, ask_store=photo.was_known)


def _is_written(spec: ModelSpec) -> bool:
    """Return whether the embedding goes into the store: rarely does anybody click on an image of a large batch."""
    return isinstance(spec, EmbedJob) or spec.priority is not Priority.BULK


def _metrics(measured: SegmentMetrics) -> Metrics:
    return Metrics(
        embed_s=measured.embed_s,
        decode_s=measured.decode_s,
        points=measured.points,
        points_per_batch=measured.points_per_batch,
        decoded_again=measured.decoded_again,
        decoded_again_exactly=measured.decoded_again_exactly,
        embedding=measured.embedding,
    )
