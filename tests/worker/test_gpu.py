"""The same masks on a CUDA device; run by ``make test-gpu``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.sam.candidates import at_hand
from maskfleet.worker.sam.compiled import Compile
from maskfleet.worker.sam.families.sam import Sam
from maskfleet.worker.sam.families.sam_hq import SamHq
from maskfleet.worker.sam.fast.sam2 import FastSam2
from maskfleet.worker.sam.model import SegmentationModel, batch_that_fits, load_model
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.segment import segment
from maskfleet.worker.steps import BOUNDS, Bounds
from tests.worker.checkpoints import save_tiny
from tests.worker.conftest import boxes, everything, points
from tests.worker.networks import random_embeddings, random_sam, random_sam2, tensors
from tests.worker.test_compiled import LOOSE
from tests.worker.test_fast_sam import POINTS, RAGGED, assert_same, with_masks

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpu(demo_model: str) -> SegmentationModel:
    assert torch.cuda.is_available(), "There is no CUDA device; these tests are for machines that have one."
    return load_model(demo_model, "cuda")


def pixels_apart(
    photo: Photo, spec: object, one: SegmentationModel, other: SegmentationModel, bounds: Bounds = BOUNDS
) -> list[int]:
    """Return how many pixels differ in each mask; fails if the sets are not the same."""
    first, second = (segment(photo, spec, model, bounds=bounds).masks for model in (one, other))  # type: ignore[arg-type]
    assert len(first) == len(second) > 0
    assert np.allclose([m.predicted_iou for m in first], [m.predicted_iou for m in second], atol=1e-4)
    return [int((decode_mask(a) != decode_mask(b)).sum()) for a, b in zip(first, second, strict=True)]


def test_everything_gives_the_cpus_masks(
    example: Callable[[str], Photo], model: SegmentationModel, on_gpu: SegmentationModel
) -> None:
    assert max(pixels_apart(example("coins.png"), everything(), model, on_gpu)) <= 5


def test_prompts_give_the_cpus_masks(
    example: Callable[[str], Photo], model: SegmentationModel, on_gpu: SegmentationModel
) -> None:
    photo = example("coins.png")
    some_points = points({"points": [(153, 126)]}, {"points": [(270, 118), (306, 120)], "labels": [1, 0]})

    assert max(pixels_apart(photo, some_points, model, on_gpu)) <= 5
    assert max(pixels_apart(photo, boxes({"box": (304, 14, 366, 73)}, multimask=True), model, on_gpu)) <= 5


def test_masks_are_decoded_again_by_the_librarys_decoder_on_the_device(
    example: Callable[[str], Photo],
    model: SegmentationModel,
    on_gpu: SegmentationModel,
) -> None:
    photo, every_mask = example("coins.png"), Bounds(borderline_pixels=-1)

    assert segment(photo, everything(), on_gpu, bounds=every_mask).metrics.decoded_again > 0
    assert max(pixels_apart(photo, everything(), model, on_gpu, every_mask)) <= 5
    assert max(pixels_apart(photo, points({"points": [(153, 126)]}), model, on_gpu, every_mask)) <= 5


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompts", [RAGGED, with_masks(POINTS, 20)], ids=["ragged", "with masks"])
def test_sam_2s_decoder_gives_the_cpus_candidates(prompts: PromptBatch, multimask: bool) -> None:
    network = random_sam2(32, 2, 5)
    embeddings = random_embeddings(network)
    expected = FastSam2(network)
    fast = FastSam2(copy.deepcopy(network).to("cuda"))

    found = fast.decode(fast.image_state([one.cuda() for one in embeddings]), prompts, multimask=multimask)

    rows, columns = torch.ones_like(found.predicted_iou).nonzero(as_tuple=True)
    made = found.logits(rows, columns).cpu().view(*found.predicted_iou.shape, 20, 20)
    assert found.object_score is not None
    on_host = at_hand(made, found.predicted_iou.cpu(), found.object_score.cpu())
    assert_same(on_host, expected.decode(expected.image_state(embeddings), prompts, multimask=multimask))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_finds_the_same_object(
    demo_model: str, example: Callable[[str], Photo], model: SegmentationModel, precision: str
) -> None:
    photo, spec = example("coins.png"), boxes({"box": (304, 14, 366, 73)})

    [whole], [half] = (segment(photo, spec, m).masks for m in (model, load_model(demo_model, "cuda", precision)))

    inside, other = decode_mask(whole), decode_mask(half)
    assert (inside & other).sum() / (inside | other).sum() > 0.9


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2", "edgetam"])
def test_every_familys_masks_are_the_cpus(kind: str, tmp_path: Path, example: Callable[[str], Photo]) -> None:
    folder, photo = save_tiny(kind, tmp_path), example("coins.png")
    here, there = (load_model(folder, device) for device in ("cpu", "cuda"))

    pixels = photo.pixels[:160, :210]
    embedded = (tensors(model.family.embed(pixels).values) for model in (here, there))
    off = [float((one.cpu() - other).norm() / other.norm()) for other, one in zip(*embedded, strict=True)]

    assert max(off) < 1e-5  # TensorFloat-32 would be off by 1e-3
    assert max(pixels_apart(photo, everything(**LOOSE), here, there)) <= 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compile_as", ["encoder", "encoder_graphs"])
def test_a_compiled_encoder_gives_nearly_the_same_masks(
    demo_model: str, example: Callable[[str], Photo], compile_as: Compile, precision: str
) -> None:
    photo, spec = example("coins.png"), everything(pred_iou_thresh=0.7, stability_score_thresh=0.8)
    plain = load_model(demo_model, "cuda", precision)

    with capture_logs() as logs:
        compiled = load_model(demo_model, "cuda", precision, compile_as=compile_as)

    assert [log["event"] for log in logs] == ["encoder_compiled"]
    if precision == "float32":
        assert max(pixels_apart(photo, spec, plain, compiled)) <= 5
    else:
        first, second = (segment(photo, spec, model).masks for model in (plain, compiled))
        assert abs(len(first) - len(second)) <= 0.1 * len(first)


@pytest.mark.parametrize("compile_as", ["encoder", "encoder_graphs"])
def test_a_compiled_encoder_is_not_compiled_again_and_its_embeddings_last(
    demo_model: str, example: Callable[[str], Photo], compile_as: Compile
) -> None:
    model, photo = load_model(demo_model, "cuda", compile_as=compile_as), example("coins.png")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    embedding = model.family.embed(photo.pixels)
    kept = [one.clone() for one in tensors(embedding.values)]
    for size in (64, 384, 200):
        model.family.embed(np.zeros((size, 384, 3), np.uint8))

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert all(torch.equal(*pair) for pair in zip(tensors(embedding.values), kept, strict=True))


def test_a_later_job_decodes_as_many_points_at_once_as_the_first(example: Callable[[str], Photo]) -> None:
    network: Any = random_sam(256, 8, 64, seed=1).to("cuda")
    preprocessing = Sam.read_preprocessing({})
    model = SegmentationModel("hq", SamHq(network, preprocessing), torch.device("cuda"))  # its points take most memory
    first = batch_that_fits(model, 1_000_000)

    network.get_image_embeddings(torch.zeros(1, 3, 1024, 1024, device="cuda"))

    assert torch.cuda.memory_reserved() > torch.cuda.memory_allocated()
    assert batch_that_fits(model, 1_000_000) >= 0.95 * first
