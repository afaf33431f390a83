"""What several workers on one device take is estimated from the checkpoint, and compared with what is there."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.node.device import CPU
from maskfleet.worker.node.machine import CpuClock, available_memory, usable_cores
from maskfleet.worker.node.memory import CPU_JOB_BYTES, PROCESS_BYTES, TooLittleMemory, check_memory, weights_bytes

GB = 10**9


def save_weights(folder: Path, name: str, *shapes: list[int], dtype: str = "F32") -> None:
    tensors = {f"t{n}": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for n, shape in enumerate(shapes)}
    head = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(head)) + head)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine whose /proc and /sys say what a test writes there."""
    for folder in ("proc", "sys/fs/cgroup/memory"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000000 kB\nMemFree: 1000 kB\nMemAvailable:    8000000 kB\n")
    return tmp_path


def test_weights_are_counted_in_float32_over_all_files(tmp_path: Path) -> None:
    save_weights(tmp_path, "model-00001-of-00002.safetensors", [10, 20], [5])
    save_weights(tmp_path, "model-00002-of-00002.safetensors", [100], [], dtype="F16")

    assert weights_bytes(str(tmp_path)) == 4 * (200 + 5 + 100 + 1)


def test_the_demo_checkpoints_weights_are_those_that_are_loaded(demo_model: str) -> None:
    stored = (Path(demo_model) / "model.safetensors").stat().st_size

    counted = weights_bytes(demo_model)

    assert counted is not None
    assert counted <= 4 * stored


def test_a_model_of_the_hub_is_looked_for_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--acme--sam" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--acme--sam" / "refs").mkdir()
    (tmp_path / "models--acme--sam" / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    save_weights(snapshot, "model.safetensors", [1000])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    assert weights_bytes("acme/sam") == 4000
    assert weights_bytes("acme/sam", "a" * 40) == 4000
    assert weights_bytes("acme/other") is None


@pytest.mark.parametrize("head", [b"", b"\xff" * 100, struct.pack("<Q", 5) + b"{...}"])
def test_a_damaged_file_is_left_to_the_loading(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(head)

    assert weights_bytes(str(tmp_path)) is None


def test_on_a_machine_without_limits_what_the_kernel_calls_available_counts(machine: Path) -> None:
    assert available_memory(machine) == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (
            {
                "memory.max": "3000000000",
                "memory.current": "2000000000",
                "memory.stat": "anon 5\ninactive_file 400000000\n",
            },
            1.4,
        ),
        ({"memory.max": "max", "memory.current": "2000000000"}, 8.192),
        ({"memory/memory.limit_in_bytes": "3000000000", "memory/memory.usage_in_bytes": "2500000000"}, 0.5),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"}, 8.192),
    ],
    ids=["v2", "v2 without a limit", "v1", "v1 without a limit"],
)
def test_in_a_container_its_limit_counts(machine: Path, files: dict[str, str], left: float) -> None:
    for name, text in files.items():
        (machine / "sys/fs/cgroup" / name).write_text(text)

    assert available_memory(machine) == left * GB


def test_workers_that_do_not_fit_are_refused_with_how_many_would(machine: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    save_weights(model, "model.safetensors", [641_000_000])  # ViT-H
    settings = WorkerSettings(model=str(model))
    each = 4 * 641_000_000 + PROCESS_BYTES + CPU_JOB_BYTES
    fit = 8_000_000 * 1024 // each

    check_memory((CPU,), fit, settings, machine)
    with pytest.raises(TooLittleMemory) as refused:
        check_memory((CPU,), fit + 1, settings, machine)

    assert f"Use --slots-per-device {fit}, or a smaller model." in str(refused.value)
    assert "2.6 GB for the model's weights" in str(refused.value)


def test_a_model_that_is_not_here_yet_counts_without_its_weights(machine: Path) -> None:
    settings = WorkerSettings(model="./not-here")

    check_memory((CPU,), 2, settings, machine)
    with pytest.raises(TooLittleMemory):
        check_memory((CPU,), 64, settings, machine)


def test_a_machine_that_says_nothing_is_not_checked(tmp_path: Path) -> None:
    check_memory((CPU,), 64, WorkerSettings(model="./not-here"), tmp_path)

    assert CpuClock(tmp_path).busy() is None


def test_cores_are_those_of_the_container(machine: Path) -> None:
    (machine / "sys/fs/cgroup/cpu.max").write_text("100000 100000\n")

    assert usable_cores(machine) == 1


def test_the_cores_business_is_that_since_the_clock_was_started(machine: Path) -> None:
    (machine / "proc/stat").write_text("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1\n")
    clock = CpuClock(machine)
    (machine / "proc/stat").write_text("cpu  160 0 115 715 110 0 0 0 90 0\ncpu0 1 1 1\n")

    assert clock.busy() == 0.75
