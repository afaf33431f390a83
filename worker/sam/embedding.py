"""An image, scaled into the model's frame and encoded: once per image or crop, whatever the number of prompts."""

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
    """How the checkpoint expects its images: the values of its ``preprocessor_config.json``.

    input_hw: of the network's input.  longest_edge: an image's longer side is scaled to this, and the rest of the input
    is padding; None: the image is stretched over the whole input, whatever its aspect ratio.
    """

    input_hw: tuple[int, int]
    longest_edge: int | None
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image lies in the model's input: scaled to scaled_hw, at the top left of padded_hw.

    keeps_aspect: True for SAM: scaled in proportion and padded; masks are scaled back in two bilinear steps, with the
    padding cropped in between.  False for SAM 2: stretched over the input; masks are scaled back in one step.
    """

    original_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    keeps_aspect: bool = True

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Scale coordinates from the original's pixels to the model's."""
        return self.scaled_hw[1] / self.original_hw[1], self.scaled_hw[0] / self.original_hw[0]

    @property
    def prompt_dtype(self) -> torch.dtype:
        """The dtype in which prompts are scaled, as in SamProcessor and Sam2Processor."""
        return torch.float64 if self.keeps_aspect else torch.float32


@dataclass(frozen=True, slots=True)
class Embedding:
    """The encoder's output for one image or crop.  values: in the form that its family expects."""

    values: Any  # a tensor, several, or what a fast path has computed from them
    frame: Frame


def frame_of(original_hw: tuple[int, int], preprocessing: Preprocessing) -> Frame:
    """Fit an image into the model's input.

    If the aspect ratio is kept, the longer side is scaled to the model's and halves are rounded up.  A side is never
    shorter than one pixel; in transformers it may be, and then 1×5000 fails.
    """
    if preprocessing.longest_edge is None:
        return Frame(original_hw, preprocessing.input_hw, preprocessing.input_hw, keeps_aspect=False)
    scale = preprocessing.longest_edge / max(original_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in original_hw)
    return Frame(original_hw, (height, width), preprocessing.input_hw)


def pixel_values(pixels: npt.NDArray[np.uint8], frame: Frame, preprocessing: Preprocessing) -> Tensor:
    """Scale, normalise and pad, bit for bit as the library's image processors, which need torchvision.

    pixels: (H, W, 3) RGB.  Always on the CPU, as in the pipeline: a GPU rounds differently.  Returns (1, 3, h, w) in
    float32.
    """
    # Kept in its memory layout, channels last: otherwise torch's kernel would copy a large photo twice.
    scaled = _resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], frame.scaled_hw).to(torch.float32)
    # Rescaling is folded into mean and std, in the library's order of operations.
    unit = 1.0 / preprocessing.rescale_factor
    mean, std = (torch.tensor(numbers) * unit for numbers in (preprocessing.mean, preprocessing.std))
    normal = scaled.sub_(mean[:, None, None]).div_(std[:, None, None])
    below, beside = frame.padded_hw[0] - frame.scaled_hw[0], frame.padded_hw[1] - frame.scaled_hw[1]
    return pad(normal, (0, beside, 0, below))


def _resize(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize bilinearly with antialiasing, in integers where torch has a kernel for them, as torchvision does."""
    if tuple(image.shape[-2:]) == size_hw:
        return image
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64"):
        return interpolate(image, size_hw, mode="bilinear", align_corners=False, antialias=True)
    scaled = interpolate(image.to(torch.float32), size_hw, mode="bilinear", align_corners=False, antialias=True)
    return scaled.round_().to(torch.uint8)
