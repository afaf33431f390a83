"""A checkpoint is loaded from a folder or a hub id, and clearly refused if it cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskfleet.jobs.errors import AttemptFailed
from maskfleet.worker.sam.model import SegmentationModel, load_model


def fault_of(ref: str, device: str = "cpu") -> AttemptFailed:
    with pytest.raises(AttemptFailed) as refused:
        load_model(ref, device)
    return refused.value


@pytest.fixture
def copy(demo_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model, tmp_path / "checkpoint"))


def test_the_bundled_checkpoint_loads_in_float32_without_gradients(model: SegmentationModel) -> None:
    weights = list(model.family.network.parameters())

    assert model.name == "sam-demo"
    assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in weights)
    assert not model.family.network.training
    assert model.family.preprocessing.longest_edge == 384


@pytest.mark.parametrize("ref", ["/nowhere/at-all", "./not-here", "not a hub id"])
def test_a_model_that_is_not_there_is_not_found(ref: str) -> None:
    fault = fault_of(ref)

    assert fault.code == "model_not_found"
    assert ref in fault.detail


def test_a_checkpoint_of_another_kind_is_refused_by_name(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "sam3"}))

    fault = fault_of(str(copy))

    assert fault.code == "model_not_supported"
    assert "is a sam3 model" in fault.detail


def test_weights_that_break_off_are_unreadable(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])

    assert fault_of(str(copy)).code == "model_unreadable"


def test_a_config_that_is_not_json_is_not_a_model(copy: Path) -> None:
    (copy / "config.json").write_text("{")

    assert fault_of(str(copy)).code in ("model_not_found", "model_unreadable")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_unavailable(demo_model: str) -> None:
    assert fault_of(demo_model, "cuda").code == "device_unavailable"


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    network = load_model(str(copy), "cpu").family.network
    torch.save(network.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()

    assert fault_of(str(copy)).code == "model_not_found"


def test_of_a_hub_model_the_revision_that_is_set_is_loaded(demo_model: str, tmp_path: Path) -> None:
    """From the hub's cache, where both a commit with the checkpoint and a later one without lie."""
    pinned, latest = "a" * 40, "b" * 40
    folder = tmp_path / "models--ant--sam"
    shutil.copytree(demo_model, folder / "snapshots" / pinned)
    shutil.copytree(demo_model, folder / "snapshots" / latest)
    (folder / "snapshots" / latest / "model.safetensors").unlink()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(latest)
    program = (
        "from maskfleet.jobs.errors import AttemptFailed\n"
        "from maskfleet.worker.sam.model import load_model\n"
        f"print(load_model('ant/sam', 'cpu', revision='{pinned}').name)\n"
        "try: load_model('ant/sam', 'cpu')\n"
        "except AttemptFailed as error: print(error.code)\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)

    assert ran.stdout.split() == ["ant/sam", "model_not_found"], ran.stderr
