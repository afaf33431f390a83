"""Prompts in the model's frame, in batches that are decoded at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.spec import Prompt
from worker.crops import Crop
from worker.embedding import Frame


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """N prompts of one shape: the same number of points P each, and a box each or none.

    points_xy: (N, P, 2) or None; labels: (N, P), 1 on the object, 0 off it; boxes_xyxy: (N, 4) or None;
    all in pixels of the model's frame.  indices: of each prompt in the job's list, or of each point in the
    grid.  asked_xy: the points in pixels of the original.
    """

    points_xy: Tensor | None
    labels: Tensor | None
    boxes_xyxy: Tensor | None
    indices: tuple[int, ...]
    asked_xy: tuple[tuple[tuple[float, float], ...], ...]


def count_grid_batches(crops: Sequence[Crop], points_per_batch: int) -> int:
    """How many batches ``grid_batches`` gives over all crops."""
    return sum(-(-(crop.points_per_side**2) // points_per_batch) for crop in crops)


def grid_batches(crop: Crop, frame: Frame, points_per_batch: int) -> Iterator[PromptBatch]:
    """A crop's grid of single points, row by row, each one prompt."""
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


def count_prompt_batches(prompts: Sequence[Prompt], prompts_per_batch: int) -> int:
    """How many batches ``prompt_batches`` gives."""
    return len(_groups(prompts, prompts_per_batch))


def prompt_batches(prompts: Sequence[Prompt], frame: Frame, prompts_per_batch: int) -> Iterator[PromptBatch]:
    """Batch prompts with those of their own shape.

    Not padded to a common shape: the padding of transformers (label -10) leaves tokens that the decoder
    attends to, so that a mask would depend on its neighbours in the batch.
    """
    for indices in _groups(prompts, prompts_per_batch):
        yield _batch(prompts, indices, frame)


def _groups(prompts: Sequence[Prompt], prompts_per_batch: int) -> list[list[int]]:
    shapes: dict[tuple[int, bool], list[int]] = {}
    for index, prompt in enumerate(prompts):
        shapes.setdefault((len(prompt.points), prompt.box is not None), []).append(index)
    return [
        indices[start : start + prompts_per_batch]
        for indices in shapes.values()
        for start in range(0, len(indices), prompts_per_batch)
    ]


def _batch(prompts: Sequence[Prompt], indices: Sequence[int], frame: Frame) -> PromptBatch:
    # In double precision up to the positional encoding, as SamProcessor hands them over.
    scale_xy = torch.tensor(frame.scale_xy, dtype=torch.float64)
    chosen = [prompts[index] for index in indices]
    boxes = [prompt.box for prompt in chosen if prompt.box is not None]
    points_xy = torch.tensor([prompt.points for prompt in chosen], dtype=torch.float64) if chosen[0].points else None
    # SamProcessor takes boxes as float32 first.
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).double() if boxes else None
    return PromptBatch(
        points_xy=None if points_xy is None else points_xy * scale_xy,
        labels=None if points_xy is None else torch.tensor([prompt.point_labels for prompt in chosen]),
        boxes_xyxy=None if boxes_xyxy is None else boxes_xyxy * scale_xy.repeat(2),
        indices=tuple(indices),
        asked_xy=tuple(prompt.points for prompt in chosen),
    )


def _grid(points_per_side: int) -> Tensor:
    """The middles of n × n equal cells of the unit square, row by row, as (n², 2) in float32."""
    half = 1 / (2 * points_per_side)
    middles = torch.linspace(half, 1 - half, points_per_side)
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)
