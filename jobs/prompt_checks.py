"""Whether prompts fit the image, and their masks the model: what can be checked before anything is embedded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from maskfleet.jobs.errors import FieldFault, InvalidPrompt
from maskfleet.jobs.schema.prompts import Box, Point, Prompt

#: How far outside the image a coordinate may be: object detectors round boxes, and the library accepts any.
MARGIN_PX = 1.0


def fit_prompts(prompts: tuple[Prompt, ...], size_wh: tuple[int, int]) -> tuple[Prompt, ...]:
    """Return the prompts, moved to the image's edge where they are up to one pixel outside it.

    size_wh: the image as a viewer shows it; coordinates run from 0 to W and from 0 to H.
    Raises InvalidPrompt with a fault for each point or box that is further outside, or that has no area inside:
    ``point_outside_image``, ``box_outside_image``.
    """
    faults = [fault for number, prompt in enumerate(prompts) for fault in _faults(number, prompt, size_wh)]
    if faults:
        first, more = faults[0], len(faults) - 1
        others = f" The same is true of {more} more in this job; errors lists them." if more else ""
        raise InvalidPrompt(first.code, f"{first.pointer}: {first.detail}{others}", faults=tuple(faults))
    return tuple(_fitted(prompt, size_wh) for prompt in prompts)


def _faults(number: int, prompt: Prompt, size_wh: tuple[int, int]) -> Iterator[FieldFault]:
    width, height = size_wh
    for place, (x, y) in enumerate(prompt.points):
        if not (-MARGIN_PX <= x <= width + MARGIN_PX and -MARGIN_PX <= y <= height + MARGIN_PX):
            yield FieldFault(
                f"/prompts/{number}/points/{place}",
                "point_outside_image",
                f"The point [{x:g}, {y:g}] is outside the image of {width}×{height} pixels.",
            )
    if prompt.box is None:
        return
    x_min, y_min, x_max, y_max = prompt.box
    reaches_out = min(x_min, y_min) < -MARGIN_PX or x_max > width + MARGIN_PX or y_max > height + MARGIN_PX
    left, top, right, bottom = _box(prompt.box, size_wh)
    if reaches_out or left >= right or top >= bottom:
        yield FieldFault(
            f"/prompts/{number}/box",
            "box_outside_image",
            f"The box {[round(v, 2) for v in prompt.box]} "
            f"{'extends' if reaches_out else 'is'} outside the image of {width}×{height} pixels.",
        )


def _fitted(prompt: Prompt, size_wh: tuple[int, int]) -> Prompt:
    points = tuple(_point(point, size_wh) for point in prompt.points)
    box = _box(prompt.box, size_wh) if prompt.box is not None else None
    return (
        prompt
        if (points, box) == (prompt.points, prompt.box)
        else prompt.model_copy(update={"points": points, "box": box})
    )


def _point(point: Point, size_wh: tuple[int, int]) -> Point:
    x, y = (min(max(value, 0.0), float(limit)) for value, limit in zip(point, size_wh, strict=True))
    return x, y


def _box(box: Box, size_wh: tuple[int, int]) -> Box:
    return (*_point(box[:2], size_wh), *_point(box[2:], size_wh))


def check_mask_input_sizes(
    prompts: Sequence[Prompt], sizes: Mapping[int, tuple[int, ...]], low_hw: tuple[int, int]
) -> None:
    """Refuse a mask_input that is not there, or not of the size of the model's own masks.

    sizes: of those that are there, by the index of their prompt.
    Raises InvalidPrompt: ``invalid_mask_input``.
    """
    for index, prompt in enumerate(prompts):
        if prompt.mask_input is not None and index not in sizes:
            raise InvalidPrompt("invalid_mask_input", f"Prompt {index}: its mask_input was not passed.")
    for index, size in sizes.items():
        if size != low_hw:
            found = "×".join(map(str, size))
            raise InvalidPrompt(
                "invalid_mask_input",
                f"Prompt {index}: the mask_input is {found}; this model takes {low_hw[0]}×{low_hw[1]}.",
            )
