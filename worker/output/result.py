"""A job's masks, ready to be written: their summaries, the masks for its own JSON, and its files."""

from __future__ import annotations

from collections.abc import Callable

from maskfleet.jobs.schema.inline import WhyNotInline
from maskfleet.jobs.schema.manifest import MaskSummary
from maskfleet.jobs.schema.record import Metrics, Spec
from maskfleet.jobs.schema.spec import Output
from maskfleet.worker.image.decode import AnyPhoto
from maskfleet.worker.output.artifacts import Segmented
from maskfleet.worker.output.formats import make_artifacts
from maskfleet.worker.output.inline import masks_inline
from maskfleet.worker.segmentation import Segmentation


def segmented(
    photo: AnyPhoto,
    spec: Spec,
    segmentation: Segmentation,
    metrics: Metrics,
    keep: Callable[[], None] | None = None,
) -> Segmented:
    """Return what is to be written of a segmentation, as the spec asks.  metrics, keep: see ``Segmented``."""
    inline = masks_inline(segmentation, spec.inline)
    if isinstance(inline, WhyNotInline) and Output.COCO not in spec.outputs:
        spec = spec.model_copy(update={"outputs": (*spec.outputs, Output.COCO)})
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
        metrics=metrics,
        artifacts=make_artifacts(photo, spec, segmentation),
        keep=keep,
        inline=inline,
    )
