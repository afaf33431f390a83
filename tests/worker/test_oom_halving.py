"""A batch that does not fit in memory is halved, and every prompt is decoded once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch

from maskfleet.worker.image.decode import Photo
from maskfleet.worker.sam.candidates import Candidates, at_hand
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.oom_halving import BatchHalving
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.segment import segment
from maskfleet.worker.stages import StageName, timed
from tests.worker.conftest import everything


def batch(count: int) -> PromptBatch:
    points_xy = torch.arange(2 * count).view(count, 1, 2)
    return PromptBatch(points_xy, torch.ones(count, 1), None, tuple(range(count)), ((),) * count)


def decoding(limit: int) -> Callable[[PromptBatch], Candidates]:
    """Return a decoder that runs out of memory above a number of prompts."""

    def decode(prompts: PromptBatch) -> Candidates:
        if len(prompts.indices) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return at_hand(torch.zeros(len(prompts.indices), 3, 4, 4), torch.zeros(len(prompts.indices), 3))

    return decode


@pytest.mark.parametrize(("limit", "sizes", "known"), [(64, [10], 10), (5, [5, 5], 5), (3, [2, 2, 2, 2, 2], 2)])
def test_a_batch_is_halved_until_it_fits(limit: int, sizes: list[int], known: int) -> None:
    halving = BatchHalving(10)

    parts = list(halving.decode(decoding(limit), batch(10)))

    assert [len(part.indices) for part, _ in parts] == sizes
    assert [index for part, _ in parts for index in part.indices] == list(range(10))
    assert torch.equal(
        torch.cat([part.points_xy for part, _ in parts if part.points_xy is not None]), batch(10).points_xy
    )
    assert halving.points_per_batch == known
    assert halving.halvings == {10: 0, 5: 1, 2: 2}[known]


def test_later_batches_begin_with_the_size_that_fitted() -> None:
    halving = BatchHalving(8)
    list(halving.decode(decoding(4), batch(8)))

    parts = list(halving.decode(decoding(4), batch(8)))

    assert [len(part.indices) for part, _ in parts] == [4, 4]


def test_one_prompt_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(BatchHalving(4).decode(decoding(0), batch(4)))


def test_a_job_that_meets_the_end_of_memory_once_has_the_same_masks(
    model: SegmentationModel, example: Callable[[str], Photo]
) -> None:
    family = copy.copy(model.family)
    met: list[int] = []

    class Short(type(family)):  # type: ignore[misc]
        def decode(self, embedding: object, prompts: PromptBatch, **asked: bool) -> Candidates:
            met.append(len(prompts.indices))
            if len(met) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().decode(embedding, prompts, **asked)

    family.__class__ = Short
    spec = everything(points_per_crop=4, points_per_batch=6, pred_iou_thresh=0.5, stability_score_thresh=0.5)

    with timed() as timings:
        done = segment(example("coins.png"), spec, dataclasses.replace(model, family=family))

    undisturbed = segment(example("coins.png"), spec, model)
    assert met == [6, 6, 3, 3, 3, 1]
    assert timings.halvings == 1
    assert timings.stages.keys() == {StageName.EMBED, StageName.DECODE_PROMPTS, StageName.MEASURE}
    assert (done.metrics.points, done.metrics.points_per_batch) == (16, 3)
    assert [mask.point_coords for mask in done.masks] == [mask.point_coords for mask in undisturbed.masks]
    assert [mask.area for mask in done.masks] == pytest.approx([mask.area for mask in undisturbed.masks], abs=2)
