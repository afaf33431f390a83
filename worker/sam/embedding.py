"""An image, scaled into the model's frame and encoded: done once, however many prompts follow."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How the checkpoint wants its images: the numbers of its ``preprocessor_config.json``.

    input_hw: of the network's input.  longest_edge: an image's longer side becomes this long, and what is left of the
    input is padding; None: the image is stretched over all of the input, whatever its aspect.
    """

    input_hw: tuple[int, int]
    longest_edge: int | None
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image lies in the model's input: scaled to scaled_hw, at the top left of padded_hw.

    keeps_aspect: SAM's way: scaled in proportion and padded; masks come back in two bilinear steps, the padding taken
    off between them.  Else SAM 2's: stretched over the input; masks come back in one step.
    """

    original_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    keeps_aspect: bool = True

    @property
    def scale_xy(self) -> tuple[float, float]:
        """From the original's pixels to the model's."""
        return self.scaled_hw[1] / self.original_hw[1], self.scaled_hw[0] / self.original_hw[0]

    @property
    def prompt_dtype(self) -> torch.dtype:
        """What prompts are scaled in: as SamProcessor hands them over, and Sam2Processor."""
        return torch.float64 if self.keeps_aspect else torch.float32


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the encoder sees in one image or crop.  values: as the family that made them reads them."""

    values: Any  # a tensor, several, or what a fast path has prepared from them
    frame: Frame


def frame_of(original_hw: tuple[int, int], preprocessing: Preprocessing) -> Frame:
    """Lay an image into the model's input.

    In proportion, the longer side becomes the model's and halves are rounded up.  A side never falls under one pixel;
    in transformers it may, and then 1×5000 fails.
    """
    if preprocessing.longest_edge is None:
        return Frame(original_hw, preprocessing.input_hw, preprocessing.input_hw, keeps_aspect=False)
    scale = preprocessing.longest_edge / max(original_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in original_hw)
    return Frame(original_hw, (height, width), preprocessing.input_hw)


def pixel_values(pixels: npt.NDArray[np.uint8], frame: Frame, preprocessing: Preprocessing) -> Tensor:
    """Scale, normalise and pad, bit for bit as the library's image processors, which need torchvision.

    pixels: (H, W, 3) RGB.  Always on the CPU, as in the pipeline: a GPU rounds otherwise.  Returns (1, 3, h, w) in
    float32.
    """
    # Left as it lies in memory, channels last: torch's kernel would copy a large photo twice to turn it over.
    scaled = _resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], frame.scaled_hw).to(torch.float32)
    # Rescaling is folded into mean and spread, in the library's order of operations.
    unit = 1.0 / preprocessing.rescale_factor
    mean, std = (torch.tensor(numbers) * unit for numbers in (preprocessing.mean, preprocessing.std))
    normal = scaled.sub_(mean[:, None, None]).div_(std[:, None, None])
    below, beside = frame.padded_hw[0] - frame.scaled_hw[0], frame.padded_hw[1] - frame.scaled_hw[1]
    return pad(normal, (0, beside, 0, below))


def _resize(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, in integers where torch has a kernel for them, as torchvision does."""
    if tuple(image.shape[-2:]) == size_hw:
        return image
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64"):
        return interpolate(image, size_hw, mode="bilinear", align_corners=False, antialias=True)
    scaled = interpolate(image.to(torch.float32), size_hw, mode="bilinear", align_corners=False, antialias=True)
    return scaled.round_().to(torch.uint8)
