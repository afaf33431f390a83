"""How exact the logits are; the encoder in half precision, and measuring masks behind a device's back, on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import SamModel, SamProcessor

from tests.worker.conftest import boxes
from tests.worker.truth import coins, of_megapixels
from worker.batches import run_behind
from worker.decoder import Candidates, at_hand, decode_with_library
from worker.fast_sam import FastSam
from worker.images import Photo
from worker.masks import decode_rle
from worker.model import SegmentationModel, load_model
from worker.prompts import PromptBatch
from worker.segment import segment

#: Of a logit: a pixel is about as far from its neighbour's.
NEAR_THRESHOLD = 1.0


def test_logits_near_the_threshold_are_as_exact_as_the_librarys(demo_model: str) -> None:
    """Their rounding decides which pixels of a large photograph fall to which side."""
    network: Any = SamModel.from_pretrained(demo_model).eval()
    image = coins(of_megapixels(18))
    points = [[(x + 0.5) / 4 * image.width, (y + 0.5) / 4 * image.height] for x in range(4) for y in range(4)]
    processor = SamProcessor.from_pretrained(demo_model)
    inputs = processor(images=image, input_points=[[[point] for point in points]], return_tensors="pt")
    with torch.inference_mode():
        embedding = network.get_image_embeddings(inputs["pixel_values"])
        batch = PromptBatch(inputs["input_points"][0], torch.ones(16, 1).long(), None, tuple(range(16)), ((),) * 16)
        fast = FastSam(network)
        exact, theirs, ours = (
            candidates.logits(torch.arange(16).repeat_interleave(3), torch.arange(3).repeat(16)).double()
            for candidates in (
                _in_double_precision(network, embedding, batch),
                decode_with_library(network, batch, multimask=True, image_embeddings=embedding),
                fast.decode(fast.image_state(embedding), batch),
            )
        )

    near = exact.abs() < NEAR_THRESHOLD
    off, theirs_off = (float((logits - exact)[near].abs().mean()) for logits in (ours, theirs))
    print(f"ours are {off:.2e} off, the library's {theirs_off:.2e}, over {int(near.sum())} logits")  # noqa: T201
    assert near.sum() > 1000
    assert off < 1.15 * theirs_off


def _in_double_precision(network: Any, embedding: torch.Tensor, batch: PromptBatch) -> Candidates:
    exact = copy.deepcopy(network).double()
    return decode_with_library(exact, batch, multimask=True, image_embeddings=embedding.double())


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
