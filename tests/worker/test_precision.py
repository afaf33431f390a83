"""The encoder in half precision, and measuring masks behind a device's back, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tests.worker.conftest import boxes
from worker.batches import run_behind
from worker.decoder import at_hand
from worker.images import Photo
from worker.masks import decode_rle
from worker.model import SegmentationModel, load_model
from worker.segment import segment


def test_half_precision_finds_the_same_object_with_other_numbers(
    demo_model: str, example: Callable[[str], Photo], model: SegmentationModel
) -> None:
    photo, spec = example("coins.png"), boxes({"box": (304, 14, 366, 73)})

    [whole], [half] = (segment(photo, spec, m).masks for m in (model, load_model(demo_model, "cpu", "bfloat16")))

    inside, other = decode_rle(whole), decode_rle(half)
    assert (inside & other).sum() / (inside | other).sum() > 0.9
    assert whole.predicted_iou != half.predicted_iou


def test_chosen_candidates_on_the_host_are_those_of_the_device() -> None:
    logits = torch.randn(5, 3, 4, 4)
    candidates = at_hand(logits, torch.rand(5, 3))
    rows, columns = torch.tensor([0, 2, 4]), torch.tensor([1, 1, 0])

    ready = candidates.on_host(rows, columns)

    assert torch.equal(ready.logits(rows[1:], columns[1:]), logits[rows[1:], columns[1:]])


def test_tasks_run_in_their_order_while_the_next_is_made() -> None:
    for in_thread in (False, True):
        done: list[int] = []

        run_behind((partial(done.append, n) for n in range(5)), in_thread=in_thread)

        assert done == list(range(5))


def test_a_task_that_fails_stops_the_rest() -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 1:
            raise ValueError(number)
        done.append(number)

    try:
        run_behind((partial(task, n) for n in range(5)), in_thread=True)
    except ValueError:
        done.append(-1)

    assert done == [0, -1]
