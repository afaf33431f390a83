"""Prompts in the model's frame, in batches that are decoded together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.worker.sam.crops import Crop
from maskfleet.worker.sam.embedding import Frame

#: The label of padding, for prompts with fewer points than others in their batch.
PADDING = -10

#: Low-resolution logits of an earlier result, (h, w), by the index of the prompt that names them.
MaskInputs = Mapping[int, npt.NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """N prompts that are decoded together.

    points_xy: (N, P, 2) or None; labels: (N, P), 1 on the object, 0 off it; boxes_xyxy: (N, 4) or None; all in pixels
    of the model's frame.  Prompts are of one shape, or padded to one if the model's family allows that: points with
    the label PADDING do not count, and a row of NaN means no box.
    mask_input: (N, h, w), an earlier mask's logits for each, or None.
    indices: of each prompt in the job's list, or of each point in the grid.  asked_xy: the points in pixels of the
    original.
    """

    points_xy: Tensor | None
    labels: Tensor | None
    boxes_xyxy: Tensor | None
    indices: tuple[int, ...]
    asked_xy: tuple[tuple[tuple[float, float], ...], ...]
    mask_input: Tensor | None = None

    def part(self, start: int, stop: int) -> PromptBatch:
        """Return the prompts in a range of the batch."""
        some = slice(start, stop)
        points_xy, labels, boxes_xyxy, mask_input = (
            None if given is None else given[some]
            for given in (self.points_xy, self.labels, self.boxes_xyxy, self.mask_input)
        )
        return PromptBatch(points_xy, labels, boxes_xyxy, self.indices[some], self.asked_xy[some], mask_input)

    def alone(self, place: int) -> PromptBatch:
        """Return one prompt by itself, without padding."""
        one = self.part(place, place + 1)
        points_xy, labels, boxes_xyxy = one.points_xy, one.labels, one.boxes_xyxy
        if points_xy is not None and labels is not None:
            real = labels[0] != PADDING
            points_xy, labels = (points_xy[:, real], labels[:, real]) if real.any() else (None, None)
        if boxes_xyxy is not None and boxes_xyxy.isnan().any():
            boxes_xyxy = None
        return replace(one, points_xy=points_xy, labels=labels, boxes_xyxy=boxes_xyxy)


def join(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Join batches of one shape."""
    points_xy, labels, boxes_xyxy, mask_input = (
        None if given[0] is None else torch.cat(given)
        for given in zip(*((one.points_xy, one.labels, one.boxes_xyxy, one.mask_input) for one in batches), strict=True)
    )
    indices, asked_xy = (
        tuple(itertools.chain.from_iterable(given))
        for given in zip(*((one.indices, one.asked_xy) for one in batches), strict=True)
    )
    return PromptBatch(points_xy, labels, boxes_xyxy, indices, asked_xy, mask_input)


def grid_batches(crop: Crop, frame: Frame, points_per_batch: int) -> Iterator[PromptBatch]:
    """Yield a crop's grid of points in batches, row by row; each point is one prompt."""
    in_crop_xy = _grid(crop.points_per_side) * torch.tensor(crop.size_wh)
    in_frame_xy = in_crop_xy * torch.tensor(frame.scale_xy)
    asked_xy = (in_crop_xy.double() + torch.tensor(crop.box_xyxy[:2])).tolist()
    for start in range(0, len(asked_xy), points_per_batch):
        points_xy = in_frame_xy[start : start + points_per_batch, None, :]
        yield PromptBatch(
            points_xy=points_xy,
            labels=torch.ones(points_xy.shape[:2], dtype=torch.int64),
            boxes_xyxy=None,
            indices=tuple(range(start, start + len(points_xy))),
            asked_xy=tuple(((x, y),) for x, y in asked_xy[start : start + points_per_batch]),
        )


def group_prompts(
    prompts: Sequence[Prompt], prompts_per_batch: int, *, padded: bool, masked: MaskInputs
) -> tuple[tuple[int, ...], ...]:
    """Group prompts that are decoded together; returns their indices.

    A group has one shape, or with ``padded`` any.  Only a family that masks padding out of every attention may use
    ``padded``: the padding of transformers (label -10) leaves tokens that its decoder attends to, so a mask would
    depend on its neighbours in the batch.  Prompts with and without a mask are never in one group.
    """
    shapes: dict[tuple[object, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        shape = () if padded else (len(prompt.points), prompt.box is not None)
        shapes.setdefault((*shape, index in masked), []).append(index)
    return tuple(
        tuple(indices[start : start + prompts_per_batch])
        for indices in shapes.values()
        for start in range(0, len(indices), prompts_per_batch)
    )


def prompt_batches(
    prompts: Sequence[Prompt], groups: Sequence[Sequence[int]], frame: Frame, masked: MaskInputs
) -> Iterator[PromptBatch]:
    """Yield the groups' prompts, in the model's frame."""
    for indices in groups:
        chosen = [prompts[index] for index in indices]
        points_xy, labels = _points(chosen, frame)
        masks = [torch.from_numpy(masked[index]) for index in indices if index in masked]
        yield PromptBatch(
            points_xy=points_xy,
            labels=labels,
            boxes_xyxy=_boxes(chosen, frame),
            indices=tuple(indices),
            asked_xy=tuple(prompt.points for prompt in chosen),
            mask_input=torch.stack(masks).to(torch.float32) if masks else None,
        )


def _points(prompts: Sequence[Prompt], frame: Frame) -> tuple[Tensor | None, Tensor | None]:
    most = max(len(prompt.points) for prompt in prompts)
    if not most:
        return None, None
    missing = [most - len(prompt.points) for prompt in prompts]
    points = [(*prompt.points, *((0.0, 0.0),) * short) for prompt, short in zip(prompts, missing, strict=True)]
    labels = [(*prompt.point_labels, *(PADDING,) * short) for prompt, short in zip(prompts, missing, strict=True)]
    points_xy = torch.tensor(points, dtype=frame.prompt_dtype) * torch.tensor(frame.scale_xy, dtype=frame.prompt_dtype)
    return points_xy, torch.tensor(labels)


def _boxes(prompts: Sequence[Prompt], frame: Frame) -> Tensor | None:
    if all(prompt.box is None for prompt in prompts):
        return None
    boxes = [(torch.nan,) * 4 if prompt.box is None else prompt.box for prompt in prompts]
    # Both processors convert boxes to float32 first.
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).to(frame.prompt_dtype)
    return boxes_xyxy * torch.tensor(frame.scale_xy, dtype=frame.prompt_dtype).repeat(2)


def _grid(points_per_side: int) -> Tensor:
    """Return the centres of n × n equal cells of the unit square, row by row, as (n², 2) in float32."""
    half = 1 / (2 * points_per_side)
    middles = torch.linspace(half, 1 - half, points_per_side)
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)
