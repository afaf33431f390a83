"""What a mask is.  Needs no torch: a node without a model writes masks, too."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from maskfleet.worker.masks import rle
from maskfleet.worker.masks.rle import decode_rle


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask on the original image, with SA-1B's measures.

    counts: COCO's compressed RLE, for size_hw.  bbox_xywh: COCO's box, from the first pixel to past the last,
    so a mask of one pixel is 1 wide (SA-1B's own boxes end one pixel earlier); an empty mask's is 0 wide and high.
    stability_score: in [0, 1].  predicted_iou: the model's estimate, not bounded.  point_coords: the points
    given, or the point of the grid.  crop_box_xywh: the part of the image that was segmented.
    prompt: index into the job's prompts, None in mode everything.  candidate: 0 to 2 with multimask, else None.
    logits: (h, w) at the model's low resolution, of the crop; only if requested.
    """

    counts: str
    size_hw: tuple[int, int]
    area: int
    bbox_xywh: tuple[float, float, float, float]
    predicted_iou: float
    stability_score: float
    point_coords: tuple[tuple[float, float], ...]
    crop_box_xywh: tuple[float, float, float, float]
    prompt: int | None
    candidate: int | None
    logits: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


def decode_mask(mask: Mask) -> npt.NDArray[np.bool_]:
    """Decode a mask's pixels.  Returns (H, W), columns contiguous."""
    return decode_rle(mask.counts, mask.size_hw)


def warm_up() -> None:
    """Compile the kernels that measure and encode masks, or load them from the cache; the first time takes seconds."""
    from maskfleet.worker.masks import measure  # needs torch, as only a node with a model has it

    measure.warm_up()
    rle.warm_up()
