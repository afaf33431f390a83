"""Drawn scenes: a few large plain shapes on a plain ground, with the exact mask of each."""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter


@dataclass(frozen=True)
class Shape:
    """One object of a scene.  mask: (H, W) of what is to be seen of it."""

    mask: npt.NDArray[np.bool_]
    box_xyxy: tuple[int, int, int, int]
    middle_xy: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """pixels: (H, W, 3) RGB.  png: the same, as a file."""

    pixels: npt.NDArray[np.uint8]
    shapes: tuple[Shape, ...]

    @property
    def png(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "PNG")
        return buffer.getvalue()


def plain_scene(seed: int, size_wh: tuple[int, int] = (480, 384)) -> Scene:
    """Draw three or four discs, squares and ovals, one in each corner, in colours far from the ground's."""
    random = np.random.default_rng(seed)
    width, height = size_wh
    ground_hue = random.random()
    picture = Image.new("RGB", size_wh, _colour(ground_hue, 0.25, 0.85))
    masks = []
    corners = [(0.27, 0.28), (0.73, 0.27), (0.26, 0.73), (0.74, 0.72)]
    for number, (x, y) in enumerate(corners[: random.integers(3, 5)]):
        middle_x, middle_y = (x + random.uniform(-0.03, 0.03)) * width, (y + random.uniform(-0.03, 0.03)) * height
        across, down = random.uniform(0.15, 0.20, size=2) * min(size_wh)
        bounds = (middle_x - across, middle_y - down, middle_x + across, middle_y + down)
        stencil = Image.new("L", size_wh)
        pen = ImageDraw.Draw(stencil)
        [pen.ellipse, pen.rectangle, pen.ellipse][number % 3](bounds, fill=255)
        picture.paste(_colour(ground_hue + 0.3 + 0.13 * number, 0.75, 0.45 + 0.1 * number), mask=stencil)
        masks.append(np.asarray(stencil) > 127)
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6))).astype(np.float64)
    pixels += random.normal(0, 2, size=(*pixels.shape[:2], 1))
    return Scene(np.clip(pixels, 0, 255).astype(np.uint8), tuple(_shape(mask) for mask in masks))


def iou(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of two masks."""
    return float((one & other).sum() / (one | other).sum())


def _shape(mask: npt.NDArray[np.bool_]) -> Shape:
    rows, columns = np.nonzero(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return Shape(mask, box, (int(columns.mean()), int(rows.mean())))


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
