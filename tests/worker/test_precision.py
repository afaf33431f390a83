"""The precision of the logits; the encoder in half precision; measuring masks on the CPU while a device decodes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs
from transformers import SamModel, SamProcessor

from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.measuring_thread import MeasuringThread
from maskfleet.worker.sam.candidates import at_hand, decode_with_library
from maskfleet.worker.sam.fast.sam import FastSam
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.segment import segment
from tests.worker.checkpoints import save_tiny
from tests.worker.conftest import boxes
from tests.worker.networks import tensors
from tests.worker.truth import coins

#: In logits: about the distance to a neighbouring pixel.
NEAR_THRESHOLD = 1.0
GRID = 7


@dataclass(frozen=True)
class Off:
    """The error of logits near the threshold: the mean over the masks' means."""

    ours: float
    theirs: float


def test_logits_near_the_threshold_are_about_as_exact_as_the_librarys(demo_model: str) -> None:
    """Their rounding decides on which side of the threshold pixels of a large photograph fall."""
    network: Any = SamModel.from_pretrained(demo_model).eval()
    processor = SamProcessor.from_pretrained(demo_model)

    off = [_off(network, processor, coins(size_wh)) for size_wh in ((1155, 866), (2800, 1400), (1000, 2000))]

    ratio = statistics.geometric_mean(image.ours / image.theirs for image in off)
    print(f"ours are {ratio:.3f} times as far from the exact ones as the library's: {off}")  # noqa: T201
    assert ratio < 1.12


def _off(network: Any, processor: Any, image: Image.Image) -> Off:
    steps = [(number + 0.5) / GRID for number in range(GRID)]
    points = [[[x * image.width, y * image.height]] for x, y in product(steps, steps)]
    inputs = processor(images=image, input_points=[points], return_tensors="pt")
    count = len(points)
    labels = torch.ones(count, 1, dtype=torch.int64)
    batch = PromptBatch(inputs["input_points"][0].float(), labels, None, tuple(range(count)), ((),) * count)
    exactly, fast = copy.deepcopy(network).double(), FastSam(network)
    with torch.inference_mode():
        embedding = network.get_image_embeddings(inputs["pixel_values"])
        exact, theirs, ours = (
            candidates.logits(torch.arange(count).repeat_interleave(3), torch.arange(3).repeat(count)).double()
            for candidates in (
                decode_with_library(
                    exactly,
                    replace(batch, points_xy=inputs["input_points"][0].double()),
                    multimask=True,
                    image_embeddings=embedding.double(),
                ),
                decode_with_library(network, batch, multimask=True, image_embeddings=embedding),
                fast.decode(fast.image_state(embedding), batch),
            )
        )
    near = (exact.abs() < NEAR_THRESHOLD).flatten(1)
    counts = near.sum(1)
    by_mask = [((logits - exact).abs().flatten(1) * near).sum(1)[counts > 0] for logits in (ours, theirs)]
    return Off(*(float((sums / counts[counts > 0]).mean()) for sums in by_mask))


def test_half_precision_finds_the_same_object_with_other_numbers(
    demo_model: str, example: Callable[[str], Photo], model: SegmentationModel
) -> None:
    photo, spec = example("coins.png"), boxes({"box": (304, 14, 366, 73)})

    [whole], [half] = (segment(photo, spec, m).masks for m in (model, load_model(demo_model, "cpu", "bfloat16")))

    inside, other = decode_mask(whole), decode_mask(half)
    assert (inside & other).sum() / (inside | other).sum() > 0.9
    assert whole.predicted_iou != half.predicted_iou


def test_what_float16_cannot_hold_is_computed_in_float32(tmp_path: Path) -> None:
    folder = save_tiny("sam", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    whole, half = (load_model(folder, "cpu", precision) for precision in ("float32", "float16"))
    for model in (whole, half):
        model.family.network.vision_encoder.layers[0].mlp.lin2.weight *= 1e6

    with capture_logs() as logs:
        exact, found = (tensors(model.family.embed(pixels).values)[0] for model in (whole, half))

    assert torch.equal(found, exact)
    assert [log["event"] for log in logs] == ["encoder_overflowed"]


def test_chosen_candidates_on_the_host_are_those_of_the_device() -> None:
    logits = torch.randn(5, 3, 4, 4)
    candidates = at_hand(logits, torch.rand(5, 3))
    rows, columns = torch.tensor([0, 2, 4]), torch.tensor([1, 1, 0])

    ready = candidates.on_host(rows, columns)

    assert torch.equal(ready.logits(rows[1:], columns[1:]), logits[rows[1:], columns[1:]])


def test_tasks_run_in_their_order_while_the_next_is_made() -> None:
    for in_thread in (False, True):
        done: list[int] = []

        with MeasuringThread(wanted=in_thread) as measuring:
            for number in range(5):
                measuring.run(partial(done.append, number))

        assert done == list(range(5))


def test_a_task_that_fails_stops_the_rest() -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 1:
            raise ValueError(number)
        done.append(number)

    def all_of_them() -> None:
        with MeasuringThread(wanted=True) as measuring:
            for number in range(5):
                measuring.run(partial(task, number))

    with pytest.raises(ValueError, match="1"):
        all_of_them()

    assert done == [0]


def test_the_last_task_that_fails_is_heard_of_too() -> None:
    def task() -> None:
        raise ValueError("the last")

    with pytest.raises(ValueError, match="the last"), MeasuringThread(wanted=True) as measuring:
        measuring.run(task)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2", "edgetam"])
def test_every_familys_encoder_computes_in_half_precision(kind: str, precision: str, tmp_path: Path) -> None:
    folder = save_tiny(kind, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)

    whole, half = (
        tensors(load_model(folder, "cpu", wanted).family.embed(pixels).values) for wanted in ("float32", precision)
    )

    for exact, rounded in zip(whole, half, strict=True):
        assert rounded.dtype == torch.float32
        off = float((rounded - exact).norm() / exact.norm())
        assert 1e-5 < off < 0.3  # the random weights of EdgeTAM's many convolutions add up to 0.13
