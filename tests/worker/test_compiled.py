"""The encoder compiled: nearly the same masks, never compiled anew in a job, and left as it is where that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from structlog.testing import capture_logs
from torch import Tensor

from maskfleet.worker.embeddings.revision import embedding_revision
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.sam.compiled import compile_encoder
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment import segment
from maskfleet.worker.steps import Bounds
from tests.worker.checkpoints import INPUT, save_tiny
from tests.worker.conftest import everything
from tests.worker.networks import tensors

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="On a CPU torch compiles with a C++ compiler, and this machine has none.",
)
#: Of the tiny checkpoints, whose thresholds would drop all masks, and which are to be compared one by one.
LOOSE: dict[str, Any] = {
    "points_per_crop": 6,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "crops_nms_thresh": 1.0,
}
#: As uncompiled: at most so many pixels of a mask fall on the other side of the threshold.
MOST_PIXELS_APART = 5


@pytest.fixture(scope="module", autouse=True)
def _in_this_process() -> Iterator[None]:
    """Compile without torch's pool of processes, each of which would import torch first."""
    with torch._inductor.config.patch(compile_threads=1):
        yield


@pytest.fixture(scope="module", params=["sam", "sam2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny checkpoint, as it is and compiled.

    Of the two families whose encoders run through code of ours; compiling takes a good part of a minute.
    """
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    return load_model(folder, "cpu"), load_model(folder, "cpu", compile_as="encoder")


@pytest.fixture(scope="module")
def photo(example: Callable[[str], Photo]) -> Photo:
    pixels = np.ascontiguousarray(example("coins.png").pixels[:160, :210])
    return Photo(pixels, (210, 160), "PNG")


@needs_compiler
def test_the_masks_are_those_of_the_uncompiled_encoder(
    both: tuple[SegmentationModel, SegmentationModel], photo: Photo
) -> None:
    plain, compiled = (segment(photo, everything(**LOOSE), model).masks for model in both)

    assert len(plain) == len(compiled) == 3 * 36
    assert np.allclose([m.predicted_iou for m in plain], [m.predicted_iou for m in compiled], atol=1e-4)
    apart = [int((decode_mask(a) != decode_mask(b)).sum()) for a, b in zip(plain, compiled, strict=True)]
    assert max(apart) <= MOST_PIXELS_APART


@needs_compiler
@pytest.mark.parametrize("size_hw", [(INPUT, INPUT), (97, 128), (300, 40), (1, 1)], ids=str)
def test_no_image_needs_another_compilation(
    both: tuple[SegmentationModel, SegmentationModel], size_hw: tuple[int, int]
) -> None:
    plain, compiled = both
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)

    pairs = list(zip(*(tensors(model.family.embed(pixels).values) for model in (plain, compiled)), strict=True))

    # Other last digits: it did not run uncompiled.
    assert any(not torch.equal(*pair) for pair in pairs)
    assert all(float((one - other).norm() / one.norm()) < 1e-5 for one, other in pairs)


@needs_compiler
def test_nothing_is_decoded_again_to_match_digits_that_the_encoder_did_not_give(
    both: tuple[SegmentationModel, SegmentationModel], photo: Photo
) -> None:
    _, compiled = both

    done = segment(photo, everything(**LOOSE), compiled, bounds=Bounds(borderline_pixels=-1))

    assert done.metrics.decoded_again == 0


@needs_compiler
def test_embeddings_of_a_compiled_encoder_are_kept_apart_from_those_of_an_uncompiled_one(both: tuple[Any, Any]) -> None:
    assert len({embedding_revision(model) for model in both}) == 2


@needs_compiler
def test_an_embedding_outlives_the_next_image(tmp_path: Path) -> None:
    """CUDA graphs write every result to the same memory; on a CPU there are none, but what is copied there is here."""
    model = load_model(save_tiny("sam", tmp_path), "cpu", compile_as="encoder_graphs")
    first, second = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)

    embedding = model.family.embed(first).values.embeddings
    kept = embedding.clone()
    model.family.embed(second)

    assert torch.equal(embedding, kept)


@needs_compiler
def test_an_encoder_that_computes_something_else_when_compiled_is_not_used() -> None:
    def encode(values: Tensor) -> Tensor:
        return values * 2 if torch.compiler.is_compiling() else values

    with capture_logs() as logs:
        compiled = compile_encoder(encode, torch.ones(1, 3, 8, 8), "encoder")

    assert compiled is None
    assert [(log["event"], log["code"]) for log in logs] == [("encoder_not_compiled", "other_embeddings")]


def test_a_worker_without_a_compiler_goes_on_uncompiled(tmp_path: Path) -> None:
    """In a process of its own: torch looks for the compiler once."""
    folder = save_tiny("sam", tmp_path / "model")
    program = (
        "import sys, torch, numpy\n"
        "from maskfleet.worker.sam.model import load_model\n"
        "plain, compiled = (load_model(sys.argv[1], 'cpu', compile_as=how).family for how in ('off', 'encoder'))\n"
        "pixels = numpy.zeros((90, 128, 3), numpy.uint8)\n"
        "same = [family.embed(pixels).values.embeddings for family in (plain, compiled)]\n"
        "print(torch.equal(*same))\n"
    )
    environment = {
        **os.environ,
        "CXX": "/nowhere/g++",
        "PATH": "/nowhere",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }

    ran = subprocess.run(
        [sys.executable, "-c", program, folder], env=environment, capture_output=True, text=True, check=False
    )

    assert "encoder_not_compiled" in ran.stdout + ran.stderr
    assert ran.stdout.split()[-1] == "True", ran.stderr
