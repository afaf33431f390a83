"""Whether several workers fit in one device's memory, estimated before any of them loads a model.  Imports no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.node.device import CPU, NONE, Device, free_gpu_memory
from maskfleet.worker.node.machine import ROOT, available_memory

logger = get_logger()

#: A worker's processes on the host without weights and job: Celery's parent, the child with torch, the image decoder.
#: With the demo checkpoint and after a job of 12 megapixels they held 0.77 GB (private, by psutil), the job's included.
PROCESS_BYTES = 450 * 2**20
#: What a job takes on a CPU beyond weights and image: the bound that `tests/worker/test_memory.py` holds it to.
CPU_JOB_BYTES = 400 * 2**20
#: A CUDA context with torch's kernels, and the encoder's activations at 1024 × 1024 in float32.  Assumed, not measured.
CUDA_CONTEXT_BYTES, ENCODER_BYTES = 500 * 2**20, 2**30
#: A point in the library's decoder for SAM (`LibrarySam.embeddings_per_point`); ours takes less.  And the usual batch.
POINT_BYTES, POINTS_PER_BATCH = 41 * 2**20, 64
#: Under autocast the weights are kept in half precision, too.
HALF_PRECISION_FACTOR = 1.5
#: A safetensors file: the length of its JSON header, then that.  A longer header is not one.
_HEADER_LENGTH, _LONGEST_HEADER = struct.Struct("<Q"), 100 * 2**20


class TooLittleMemory(ValueError):
    """The workers would not fit; the message says how many would."""


@dataclass(frozen=True, slots=True)
class SlotMemory:
    """The memory that one worker takes: of the model's weights, and of all else."""

    weights: int
    other: int

    @property
    def bytes(self) -> int:
        return self.weights + self.other


def check_memory(devices: Iterable[Device], slots: int, settings: WorkerSettings, root: Path = ROOT) -> None:
    """Raise TooLittleMemory if so many workers do not fit on each device, or together on this machine.

    The weights of a model that is not on this machine yet do not count, and a machine or card that does not say what is
    available is not checked: the log says so.
    """
    devices = tuple(devices)
    weights = weights_bytes(settings.model, settings.model_revision) if devices != (NONE,) else 0
    if weights is None:
        logger.warning("weights_not_counted", why="the model is not on this machine yet", model=settings.model)
        weights = 0
    for device in devices:
        if device.kind not in (CPU.kind, NONE.kind):
            card = f"the GPU {device.label} ({device.model})"
            _check(card, free_gpu_memory(device), slots, _on_card(weights, settings.precision))
    on_cpu = any(device.kind in (CPU.kind, NONE.kind) for device in devices)
    # On a GPU's host the weights pass through memory as each worker loads them.
    host = SlotMemory(weights if on_cpu else 0, PROCESS_BYTES + (CPU_JOB_BYTES if on_cpu else 0))
    _check("this machine", available_memory(root), slots, host, devices=len(devices))


def weights_bytes(model: str, revision: str = "") -> int | None:
    """Return the memory of a checkpoint's weights in float32; None if no safetensors of it are on this machine.

    model: a folder, or a hub id, whose files are looked for in the hub's cache.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith(("/", ".", "~")):
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json", revision=revision or None)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    sizes = [_float32_bytes(path) for path in folder.glob("*.safetensors")]
    return sum(sizes) or None


def _float32_bytes(path: Path) -> int:
    """Return the size of a file's tensors in float32, whatever they are stored in.  0 for a damaged file."""
    with path.open("rb") as file:
        head = file.read(_HEADER_LENGTH.size)
        length = _HEADER_LENGTH.unpack(head)[0] if len(head) == _HEADER_LENGTH.size else 0
        if not 0 < length <= _LONGEST_HEADER:
            return 0
        try:
            tensors = json.loads(file.read(length))
        except ValueError:
            return 0
    elements = [math.prod(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__"]
    return 4 * sum(map(int, elements))


def _on_card(weights: int, precision: str) -> SlotMemory:
    factor = 1.0 if precision == "float32" else HALF_PRECISION_FACTOR
    return SlotMemory(int(weights * factor), CUDA_CONTEXT_BYTES + ENCODER_BYTES + POINT_BYTES * POINTS_PER_BATCH)


def _check(place: str, available: int | None, slots: int, slot: SlotMemory, *, devices: int = 1) -> None:
    if available is None:
        logger.warning("memory_not_checked", why=f"{place} does not say how much is available")
        return
    needed = slots * devices * slot.bytes
    if needed <= available:
        return
    fit = available // (devices * slot.bytes)
    workers = f"{slots} workers" if devices == 1 else f"{slots} workers on each of {devices} devices"
    raise TooLittleMemory(
        f"{workers} need about {_gb(needed)} of memory on {place}, where {_gb(available)} are available: each takes "
        f"{_gb(slot.weights)} for the model's weights and {_gb(slot.other)} beside. "
        f"Use --slots-per-device {max(1, fit)}, or a smaller model."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
