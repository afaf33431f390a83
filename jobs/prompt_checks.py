"""Whether prompts fit the image, and their masks the model: what can be checked before anything is embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskfleet.jobs.errors import InvalidPrompt
from maskfleet.jobs.schema.prompts import Prompt


def check_prompts_on_image(prompts: tuple[Prompt, ...], size_wh: tuple[int, int]) -> None:
    """Refuse a point that is outside the image, or a box that reaches outside it.

    size_wh: the image as a viewer shows it.  A box may end on the image's edge, x_max = W.
    Raises InvalidPrompt: ``point_outside_image``, ``box_outside_image``.
    """
    width, height = size_wh
    for number, prompt in enumerate(prompts):
        for x, y in prompt.points:
            if not (0 <= x < width and 0 <= y < height):
                raise InvalidPrompt(
                    "point_outside_image",
                    f"Prompt {number}: the point [{x:g}, {y:g}] is outside the image of {width}×{height} pixels.",
                )
        if prompt.box is not None:
            x_min, y_min, x_max, y_max = prompt.box
            if x_min < 0 or y_min < 0 or x_max > width or y_max > height:
                raise InvalidPrompt(
                    "box_outside_image",
                    f"Prompt {number}: the box {[round(v, 2) for v in prompt.box]} extends outside the image "
                    f"of {width}×{height} pixels.",
                )


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
