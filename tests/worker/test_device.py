"""How the worker uses a device that is not the CPU, on one that is pretended: where tensors are, and who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from maskfleet.jobs.schema.record import Spec
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.sam.families import Family
from maskfleet.worker.sam.families.sam import Sam
from maskfleet.worker.sam.families.sam2 import Sam2
from maskfleet.worker.sam.families.sam_hq import SamHq
from maskfleet.worker.sam.model import SegmentationModel, batch_that_fits, load_model
from maskfleet.worker.segment import segment
from tests.worker.checkpoints import save_tiny
from tests.worker.conftest import boxes, everything, points
from tests.worker.pretend_device import DEVICE, PretendDevice

FAMILIES: dict[str, type[Family]] = {"sam": Sam, "sam_hq": SamHq, "sam2": Sam2}
JOBS: dict[str, Spec] = {
    "everything": everything(points_per_crop=6, points_per_batch=12, pred_iou_thresh=0.5, stability_score_thresh=0.2),
    "points": points({"points": [(58, 53)]}, {"points": [(118, 55), (140, 60)], "labels": [1, 0]}, multimask=True),
    "one mask": points({"points": [(58, 53)]}, {"points": [(20, 20)]}, multimask=False),
    "boxes": boxes({"box": (90, 30, 141, 76)}, {"box": (20, 30, 70, 78), "points": [(45, 50)], "labels": [1]}),
}
BATCHES = 3
GB = 2**30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendDevice]:
    """A card with 16 GB, of which torch uses none."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (16 * GB, 16 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    with PretendDevice() as device:
        yield device


def on_card(family: type[Family], folder: str) -> SegmentationModel:
    """Load a checkpoint onto the pretended device."""
    network, preprocessing = family.read(folder)
    return SegmentationModel("pretended", family(network.to(DEVICE), preprocessing), torch.device("cuda"))


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[type[Family], str, SegmentationModel]:
    """A family, its tiny checkpoint's folder, and that one on the CPU."""
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    return FAMILIES[request.param], folder, load_model(folder, "cpu")


@pytest.fixture
def wide(example: Callable[[str], Photo]) -> Photo:
    return Photo(np.ascontiguousarray(example("coins.png").pixels[:160, :210]), (210, 160), "PNG")


@pytest.mark.parametrize("job", JOBS)
def test_masks_of_another_device_are_those_of_the_cpu(
    checkpoint: tuple[type[Family], str, SegmentationModel], job: str, wide: Photo, card: PretendDevice
) -> None:
    family, folder, on_cpu = checkpoint

    here, there = (segment(wide, JOBS[job], model).masks for model in (on_cpu, on_card(family, folder)))

    assert len(here) == len(there) > 0
    apart = [int((decode_mask(a) != decode_mask(b)).sum()) for a, b in zip(here, there, strict=True)]
    assert max(apart) <= 5


def test_a_batch_of_a_grid_waits_for_the_device_twice(
    demo_model: str, example: Callable[[str], Photo], card: PretendDevice
) -> None:
    """For the scores, to choose the candidates, and for the masks of those."""
    model, photo = on_card(Sam, demo_model), example("coins.png")
    params: dict[str, Any] = {"points_per_crop": 8, "pred_iou_thresh": 0.5}

    waits = []
    for batches in (1, 4):
        before = card.waits
        found = segment(photo, everything(points_per_batch=64 // batches, **params), model)
        waits.append(card.waits - before)
        assert found.metrics.batches == batches
        assert found.masks

    assert waits[1] - waits[0] == 3 * 2, waits


def test_what_torch_keeps_for_reuse_counts_as_free(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a job the driver's own count is lower: torch keeps its memory.  Batches would shrink from job to job."""
    point = model.family.point_bytes
    driver, reserved, allocated = 40 * point, 0, 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (driver, 80 * point))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)
    there = SegmentationModel(model.name, model.family, torch.device("cuda"))

    first = batch_that_fits(there, 64)
    driver, reserved, allocated = 10 * point, 32 * point, 2 * point
    after_a_job = batch_that_fits(there, 64)

    assert first == after_a_job == 20


def test_float32_is_float32_on_a_device_with_tensor_cores(demo_model: str) -> None:
    """Torch itself lets convolutions round their factors to 10 bits there."""
    torch.backends.cudnn.allow_tf32 = True

    load_model(demo_model, "cpu")

    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
