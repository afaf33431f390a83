"""From an image to what is written of it: the step of an attempt that needs the model."""

from __future__ import annotations

from maskfleet.jobs.schema.manifest import MaskSummary
from maskfleet.jobs.schema.record import Metrics, Spec
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.output.artifacts import Segmented
from maskfleet.worker.output.formats import make_artifacts
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import MaskInputs
from maskfleet.worker.segment import segment
from maskfleet.worker.steps import Watch


def segment_and_format(
    model: SegmentationModel, photo: Photo, spec: Spec, watch: Watch, mask_inputs: MaskInputs
) -> Segmented:
    """Segment a photo as a job asks; the files that it wants of it are made one at a time, as they are written."""
    segmentation = segment(photo, spec, model, watch, mask_inputs)
    return Segmented(
        masks=tuple(
            MaskSummary(
                area=mask.area,
                bbox=mask.bbox_xywh,
                predicted_iou=mask.predicted_iou,
                stability_score=mask.stability_score,
                prompt=mask.prompt,
                candidate=mask.candidate,
            )
            for mask in segmentation.masks
        ),
        metrics=Metrics(
            embed_s=segmentation.metrics.embed_s,
            decode_s=segmentation.metrics.decode_s,
            points=segmentation.metrics.points,
            points_per_batch=segmentation.metrics.points_per_batch,
            decoded_again=segmentation.metrics.decoded_again,
            decoded_again_exactly=segmentation.metrics.decoded_again_exactly,
        ),
        artifacts=make_artifacts(photo, spec, segmentation),
    )
