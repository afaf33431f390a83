"""The overlay as one draws it with Pillow and NumPy alone: full-size masks, one layer after another.

The slow and obvious twin of `maskfleet.worker.output.overlay`, for a picture without prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from maskfleet.worker.output.overlay import colour_of

Bools = npt.NDArray[np.bool_]
LONGEST_EDGE = 2048


def overlay(pixels: npt.NDArray[np.uint8], masks: Sequence[Bools]) -> npt.NDArray[np.uint8]:
    """Draw masks over a photo, larger ones first."""
    height, width = pixels.shape[:2]
    scale = min(1.0, LONGEST_EDGE / max(width, height))
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.asarray(Image.fromarray(pixels).resize(size_wh, Image.Resampling.LANCZOS)).astype(np.float32)
    line = max(1.0, max(size_wh) / 420)
    for index, mask in sorted(enumerate(masks), key=lambda pair: -np.count_nonzero(pair[1])):
        if mask.any():
            _draw(canvas, mask, np.array(colour_of(index), np.float32), line)
    return np.rint(canvas).astype(np.uint8)


def _draw(canvas: npt.NDArray[np.float32], mask: Bools, tint: npt.NDArray[np.float32], line: float) -> None:
    size_wh = canvas.shape[1::-1]
    small = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size_wh, Image.Resampling.BOX)
    blurred = small.filter(ImageFilter.GaussianBlur(max(0.8, line * 0.8)))
    box = blurred.getbbox()
    assert box is not None
    left, top, right, bottom = box
    region = canvas[top:bottom, left:right]
    soft = np.asarray(blurred.crop(box)).astype(np.float32)[..., None] / 255
    off_edge = np.abs(soft - 0.5)
    fill = np.float32(0.45 * (1 - 0.6 * np.count_nonzero(mask) / mask.size))
    for colour, alpha in (
        (tint, fill * np.clip((soft - 0.3) / 0.4, 0, 1)),
        (tint * 0.25, 0.55 * np.clip((0.47 - off_edge) / 0.12, 0, 1)),
        (tint + (255 - tint) * 0.25, np.clip((0.36 - off_edge) / 0.14, 0, 1)),
    ):
        region += (colour - region) * alpha
