"""The checkpoint: loaded once, by the family that its config names, and kept for the life of the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal  # transformers' configuration is a plain dict

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from maskfleet.jobs.errors import AttemptFailed
from maskfleet.jobs.settings import model_name
from maskfleet.worker.sam.compiled import Compile
from maskfleet.worker.sam.families import FAMILIES, Family


@dataclass(frozen=True, slots=True)
class SegmentationModel:
    """A checkpoint, ready to run."""

    name: str
    family: Family
    device: torch.device


def load_model(
    ref: str,
    device: str,
    precision: str = "float32",
    *,
    revision: str | None = None,
    compile_as: Compile = "off",
    reached: Callable[[Literal["load", "device"]], object] = lambda _: None,
) -> SegmentationModel:
    """Load a checkpoint from a hub id or a folder.  Pickled weights are not loaded.

    precision: of the encoder: float32, bfloat16 or float16.  revision: of a hub id; by default its latest.
    compile_as: whether the encoder is compiled, and how; takes up to minutes, and is left undone where it fails.
    reached: called when the weights have been read, and when they are on the device.

    Raises AttemptFailed: ``model_not_found``, ``model_not_supported`` (unknown family, or a package is missing),
    ``model_unreadable``, ``device_unavailable``.
    """
    if ref.startswith((".", "/", "~")) and not Path(ref).expanduser().is_dir():
        raise AttemptFailed("model_not_found", f"There is no folder {ref}.")
    source = str(Path(ref).expanduser()) if ref.startswith("~") else ref
    disable_progress_bar()  # type: ignore[no-untyped-call]  # it would clutter the worker's log
    try:
        family = _family_of(source, revision)
        network, preprocessing = family.read(source, revision)
    except ImportError as error:
        raise AttemptFailed("model_not_supported", f"{ref} needs a package that is not installed: {error}") from error
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise AttemptFailed("model_unreadable", f"The checkpoint {ref} cannot be read: {error}") from error
    except OSError as error:
        raise AttemptFailed(
            "model_not_found",
            f"The model {ref}{f' at revision {revision}' if revision else ''} was not found locally or on the hub, or "
            "has no safetensors. Use a hub id such as facebook/sam-vit-base, or a folder with config.json, "
            "preprocessor_config.json and model.safetensors.",
        ) from error
    reached("load")
    _compute_in_float32()
    try:
        place = torch.device(device)
        network = network.to(place)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise AttemptFailed("device_unavailable", f"The device {device} cannot be used: {error}") from error
    reached("device")
    loaded = family(network, preprocessing)
    loaded.encoder_dtype = getattr(torch, precision)
    loaded.compile_as = compile_as
    loaded.prepare()
    return SegmentationModel(model_name(ref), loaded, place)


def batch_that_fits(model: SegmentationModel, points_per_batch: int) -> int:
    """Reduce a batch to what fits in memory: half of what is free on a GPU, the family's limit on a CPU.

    The masks depend on it only by rounding.
    """
    on_gpu = model.device.type == "cuda"
    budget = _free_bytes(model.device) // 2 if on_gpu else model.family.cpu_batch_bytes
    return max(1, min(points_per_batch, int(budget // model.family.point_bytes)))


def _free_bytes(device: torch.device) -> int:
    """Return what this process can take of a GPU's memory: what nobody has, and what torch keeps from earlier jobs."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


def _compute_in_float32() -> None:
    """Turn off TensorFloat-32, which keeps 10 bits of each factor: for convolutions torch turns it on by itself."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _family_of(source: str, revision: str | None) -> type[Family]:
    config: dict[str, Any]
    config, _ = PreTrainedConfig.get_config_dict(source, **({"revision": revision} if revision else {}))
    if not config:
        raise OSError(f"{source} has no config.json")
    kind = str(config.get("model_type", "nameless"))
    if kind not in FAMILIES:
        raise AttemptFailed(
            "model_not_supported",
            f"{source} is a {kind} model. maskfleet runs checkpoints of SAM, SAM-HQ, SAM 2 and EdgeTAM "
            f"(model_type {', '.join(FAMILIES)}), such as facebook/sam-vit-base.",
        )
    return FAMILIES[kind]
