"""The overlay picture: masks drawn over the photo, with their prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import EverythingJob
from maskfleet.worker.image.decode import AnyPhoto
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.output.blur import Box, blur
from maskfleet.worker.output.painting import Blocks, blend, mask_coverage
from maskfleet.worker.output.scaling import scaled_down

#: Larger photos are drawn smaller: a screen shows no more, and the file stays small.
_LONGEST_EDGE = 2048
#: Half of it, since panels stand side by side.
_LONGEST_PANEL_EDGE = 1024
#: How opaque a mask's colour is; a mask of most of the photo is fainter.
_FILL = 0.45
#: Green and red: the colours of points on an object and off it.
_ON_OBJECT, _OFF_OBJECT = (34, 160, 75), (214, 48, 49)

Colour = tuple[int, int, int]


def draw_overlay(photo: AnyPhoto, spec: Spec, masks: Sequence[Mask]) -> Image.Image:
    """Draw masks over the photo, larger ones first, and the spec's boxes and points on top.

    The picture has the photo's size, or 2048 pixels on its longer side if that is less.  A multimask job of
    one object becomes three panels side by side, one for each candidate; of several objects, the best
    candidate of each is drawn.
    """
    if not isinstance(spec, EverythingJob) and spec.params.multimask:
        if len(spec.prompts) == 1:
            return _panels(photo, spec.prompts, masks)
        masks = _best_of_each(masks)
    return _scene(_ground(photo, _LONGEST_EDGE), spec.prompts, masks)


def colour_of(index: int) -> Colour:
    """Return a colour for the index-th object: the same in every picture, and far from its neighbours'.

    Hues step by the golden angle; lightness and chroma are perceptually uniform.
    Source: B. Ottosson 2020, "A perceptual color space for image processing" (OKLab).
    """
    hue = math.radians(255 + index * 137.50776)
    lightness = (0.70, 0.78, 0.64)[index % 3]
    chroma = 0.17
    while True:
        rgb = _from_oklab(lightness, chroma * math.cos(hue), chroma * math.sin(hue))
        if all(-0.001 <= value <= 1.001 for value in rgb) or chroma < 0.02:
            red, green, blue = (round(255 * min(max(value, 0), 1)) for value in rgb)
            return red, green, blue
        chroma -= 0.01  # outside the sRGB gamut: make it paler, with the same hue


def opacity_of(mask: Mask) -> float:
    """Return how opaque a mask is.  One that covers most of the photo would hide it: the larger, the fainter."""
    return _FILL * (1 - 0.6 * mask.area / (mask.size_hw[0] * mask.size_hw[1]))


def _from_oklab(lightness: float, a: float, b: float) -> list[float]:
    l_cone = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_cone = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_cone = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * l_cone - 3.3077115913 * m_cone + 0.2309699292 * s_cone,
        -1.2684380046 * l_cone + 2.6097574011 * m_cone - 0.3413193965 * s_cone,
        -0.0041960863 * l_cone - 0.7034186147 * m_cone + 1.7076147010 * s_cone,
    )
    return [12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in linear]


@dataclass(frozen=True, slots=True)
class _Ground:
    """A photo at a picture's size, to be drawn on.

    canvas: (h, w, 3), 0 to 255.  scale: the picture's size by the photo's.  columns, rows: the photo's that each pixel
    of the picture stands for.
    """

    canvas: npt.NDArray[np.float32]
    scale: float
    columns: Blocks
    rows: Blocks

    @property
    def line(self) -> float:
        """The width of a fine line."""
        return float(max(1.0, max(self.canvas.shape[:2]) / 420))


def _ground(photo: AnyPhoto, longest_edge: int) -> _Ground:
    scale = min(1.0, longest_edge / max(photo.size_wh))
    width, height = (max(1, round(side * scale)) for side in photo.size_wh)
    columns, rows = Blocks.split(photo.size_wh[0], width), Blocks.split(photo.size_wh[1], height)
    return _Ground(scaled_down(photo.pixels, (width, height)), scale, columns, rows)


def _scene(ground: _Ground, prompts: Sequence[Prompt], masks: Sequence[Mask]) -> Image.Image:
    """Draw on the ground's canvas."""
    for index, mask in sorted(enumerate(masks), key=lambda pair: -pair[1].area):
        _paint(ground, mask, colour_of(index if mask.prompt is None else mask.prompt))
    picture = Image.fromarray(np.rint(ground.canvas, out=ground.canvas).astype(np.uint8))
    for number, prompt in enumerate(prompts):
        _draw_prompt(picture, prompt, colour_of(number), ground.scale, ground.line)
    return picture


def _paint(ground: _Ground, mask: Mask, colour: Colour) -> None:
    """Lay a mask on the canvas: a translucent fill, a dark seam for contrast, a bright contour."""
    box = Box.of(max(0.8, ground.line * 0.8))
    coverage = mask_coverage(mask, ground.columns, ground.rows, margin=box.reach)
    if coverage is None:
        return
    # The blur extends edge pixels outwards, so a mask gets no contour along the edge of the picture.
    blur(coverage.shares, box)
    canvas = ground.canvas.reshape(len(ground.canvas), -1)
    layers = _layers(np.array(colour, np.float64), opacity_of(mask))
    blend(canvas, coverage.shares, coverage.left, coverage.top, *layers)


def _layers(tint: npt.NDArray[np.float64], fill: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return what stays of the canvas, (256,), and what is added to it, (256, 3), for each value of the soft mask.

    The blurred mask falls from 1 to 0 across the edge: |value - 0.5| measures the distance from it.
    """
    value = np.arange(256) / 255
    off_edge = np.abs(value - 0.5)
    keep, add = np.ones(256), np.zeros((256, 3))
    for colour, alpha in (
        (tint, fill * np.clip((value - 0.3) / 0.4, 0, 1)),
        (tint * 0.25, 0.55 * np.clip((0.47 - off_edge) / 0.12, 0, 1)),
        (tint + (255 - tint) * 0.25, np.clip((0.36 - off_edge) / 0.14, 0, 1)),
    ):
        keep = keep * (1 - alpha)
        add = add * (1 - alpha[:, None]) + colour * alpha[:, None]
    return keep.astype(np.float32), add.astype(np.float32)


def _draw_prompt(picture: Image.Image, prompt: Prompt, colour: Colour, scale: float, line: float) -> None:
    if prompt.box is not None:
        _draw_box(picture, [value * scale for value in prompt.box], colour, line)
    for (x, y), label in zip(prompt.points, prompt.point_labels, strict=True):
        _draw_point(picture, x * scale, y * scale, label, radius=max(4.0, 3.6 * line))


def _draw_box(picture: Image.Image, box_xyxy: Sequence[float], colour: Colour, line: float) -> None:
    draw = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = (round(value) for value in box_xyxy)
    x1, y1 = max(x0, min(x1, picture.width) - 1), max(y0, min(y1, picture.height) - 1)
    white, tinted = max(3, round(2.6 * line)), max(1, round(1.3 * line))
    inset = (white - tinted) // 2
    draw.rectangle((x0, y0, x1, y1), outline="white", width=white)
    if x1 - x0 > 2 * inset and y1 - y0 > 2 * inset:
        draw.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), outline=colour, width=tinted)


def _draw_point(picture: Image.Image, x: float, y: float, label: int, radius: float) -> None:
    """Draw a disc with a white rim: green with a plus on the object, red with a minus off it."""
    # Drawn large and scaled down, because Pillow's shapes have hard edges.
    finer, side = 8, math.ceil(2 * radius) + 2
    large = Image.new("RGBA", (side * finer, side * finer))
    draw = ImageDraw.Draw(large)
    middle, outer = side * finer / 2, radius * finer
    inner, arm, half = outer * 0.80, outer * 0.46, outer * 0.11
    draw.ellipse((middle - outer, middle - outer, middle + outer, middle + outer), fill="white")
    fill = _ON_OBJECT if label else _OFF_OBJECT
    draw.ellipse((middle - inner, middle - inner, middle + inner, middle + inner), fill=fill)
    draw.rectangle((middle - arm, middle - half, middle + arm, middle + half), fill="white")
    if label:
        draw.rectangle((middle - half, middle - arm, middle + half, middle + arm), fill="white")
    disc = large.resize((side, side), Image.Resampling.BOX)
    picture.paste(disc, (round(x - side / 2), round(y - side / 2)), disc)


def _panels(photo: AnyPhoto, prompts: Sequence[Prompt], masks: Sequence[Mask]) -> Image.Image:
    """Draw one panel for each candidate of an object, with its score below."""
    ground = _ground(photo, _LONGEST_PANEL_EDGE)
    scenes = [_scene(replace(ground, canvas=ground.canvas.copy()), prompts, [mask]) for mask in masks]
    width, height = scenes[0].size
    gap = max(6, round(max(width, height) / 48))
    letters = max(11, round(width / 26))
    font = ImageFont.load_default(letters)
    foot = round(letters * 2.0)
    sheet = Image.new("RGB", (len(scenes) * (width + gap) + gap, height + gap + foot), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (scene, mask) in enumerate(zip(scenes, masks, strict=True)):
        left = gap + number * (width + gap)
        sheet.paste(scene, (left, gap))
        caption = f"Mask {number + 1}   score {mask.predicted_iou:.3f}"
        draw.text((left + width / 2, gap + height + foot / 2), caption, fill=(40, 40, 40), font=font, anchor="mm")
    return sheet


def _best_of_each(masks: Sequence[Mask]) -> list[Mask]:
    best: dict[int | None, Mask] = {}
    for mask in masks:
        if mask.prompt not in best or mask.predicted_iou > best[mask.prompt].predicted_iou:
            best[mask.prompt] = mask
    return list(best.values())
