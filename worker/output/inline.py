"""Masks for the job's own JSON."""

from __future__ import annotations

from maskfleet.jobs.schema.inline import MAX_INLINE_BYTES, InlineMask, InlineMasks, Rle, WhyNotInline
from maskfleet.jobs.schema.spec import Inline
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.polygons import Polygon, mask_polygons
from maskfleet.worker.segmentation import Segmentation

#: What a corner takes at least, as JSON: two digits, two commas.
_CORNER_BYTES = 4


def masks_inline(segmentation: Segmentation, form: Inline | None) -> InlineMasks | WhyNotInline | None:
    """Return the masks in this form, or why not: they take more than MAX_INLINE_BYTES as JSON.  None: no form."""
    if form is None:
        return None
    masks, left = [], MAX_INLINE_BYTES
    for mask in segmentation.masks:
        shape = _shape(mask, form, left)
        if shape is None:
            return _too_large(form)
        one = InlineMask(
            segmentation=shape,
            area=mask.area,
            bbox=mask.bbox_xywh,
            predicted_iou=mask.predicted_iou,
            stability_score=mask.stability_score,
            prompt=mask.prompt,
            candidate=mask.candidate,
        )
        left -= len(one.model_dump_json()) + 1
        if left < 0:
            return _too_large(form)
        masks.append(one)
    width, height = segmentation.size_wh
    return InlineMasks(form=form, image_width=width, image_height=height, masks=tuple(masks))


def _too_large(form: Inline) -> WhyNotInline:
    detail = f"The masks take more than {MAX_INLINE_BYTES:,} bytes as {form}. They are in coco.json."
    return WhyNotInline(code="inline_too_large", detail=detail)


def _shape(mask: Mask, form: Inline, left: int) -> Rle | tuple[Polygon, ...] | None:
    if form is Inline.POLYGONS:
        return mask_polygons(mask.counts, mask.size_hw, left // _CORNER_BYTES)
    return Rle(size=mask.size_hw, counts=mask.counts) if len(mask.counts) <= left else None
