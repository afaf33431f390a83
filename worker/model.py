"""The network and what goes with it: loaded once, kept for the life of the process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any  # transformers' configuration is a plain dict

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from jobs.errors import AttemptFailed
from jobs.settings import model_name


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How the checkpoint wants its images: the numbers of its ``preprocessor_config.json``."""

    longest_edge: int
    pad_hw: tuple[int, int]
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SegmentationModel:
    """A SAM checkpoint, ready to run: float32, no gradients, on its device."""

    name: str
    network: Any  # SamModel, which ships no types
    preprocessing: Preprocessing
    device: torch.device


def load_model(ref: str, device: str) -> SegmentationModel:
    """Load a checkpoint from a hub id or a folder.

    Raises AttemptFailed: ``model_not_found``, ``model_not_supported`` (not SAM), ``model_unreadable``,
    ``device_unavailable``.
    """
    if ref.startswith((".", "/", "~")) and not Path(ref).expanduser().is_dir():
        raise AttemptFailed("model_not_found", f"There is no folder {ref}.")
    source = str(Path(ref).expanduser()) if ref.startswith("~") else ref
    disable_progress_bar()  # type: ignore[no-untyped-call]  # it would stand in the middle of a worker's log
    try:
        _check_is_sam(source)
        numbers = SamImageProcessorPil.from_pretrained(source)
        # float32 whatever the file holds: half precision gives other masks.
        network: Any = SamModel.from_pretrained(source, dtype=torch.float32)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise AttemptFailed("model_unreadable", f"The checkpoint {ref} cannot be read: {error}") from error
    except OSError as error:
        raise AttemptFailed(
            "model_not_found",
            f"The model {ref} was not found, here or on the hub. Give a hub id such as facebook/sam-vit-base, or a "
            "folder with config.json, preprocessor_config.json and model.safetensors.",
        ) from error
    try:
        place = torch.device(device)
        network = network.to(place).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise AttemptFailed("device_unavailable", f"The device {device} cannot be used: {error}") from error
    return SegmentationModel(model_name(ref), network, _preprocessing(numbers), place)


def _check_is_sam(source: str) -> None:
    config: dict[str, Any]
    config, _ = PreTrainedConfig.get_config_dict(source)
    kind = config.get("model_type")
    if not config:
        raise OSError(f"{source} has no config.json")
    if kind != "sam":
        raise AttemptFailed(
            "model_not_supported",
            f"{source} is a {kind or 'nameless'} model. maskfleet runs SAM checkpoints (model_type sam), "
            "such as facebook/sam-vit-base.",
        )


def _preprocessing(numbers: Any) -> Preprocessing:
    return Preprocessing(
        longest_edge=int(numbers.size["longest_edge"]),
        pad_hw=(int(numbers.pad_size["height"]), int(numbers.pad_size["width"])),
        rescale_factor=float(numbers.rescale_factor),
        mean=tuple(numbers.image_mean),
        std=tuple(numbers.image_std),
    )
