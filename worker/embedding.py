"""An image, scaled into the model's frame and encoded: done once, however many prompts follow."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from worker.model import Preprocessing, SegmentationModel


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image lies in the model's square input: scaled to scaled_hw, at the top left."""

    original_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    padded_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """From the original's pixels to the model's."""
        return self.scaled_hw[1] / self.original_hw[1], self.scaled_hw[0] / self.original_hw[0]


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the encoder sees in one image or crop.  values: (1, C, h, w)."""

    values: Tensor
    frame: Frame


def embed(model: SegmentationModel, pixels: npt.NDArray[np.uint8]) -> Embedding:
    """Encode an image or a crop of one.  pixels: (H, W, 3) RGB."""
    height, width = pixels.shape[:2]
    frame = frame_of((height, width), model.preprocessing)
    values = pixel_values(pixels, frame, model.preprocessing).to(model.device)
    with torch.inference_mode():
        return Embedding(model.network.get_image_embeddings(values), frame)


def frame_of(original_hw: tuple[int, int], preprocessing: Preprocessing) -> Frame:
    """Scale the longer side to the model's, the other in proportion, rounding halves up.

    A side never falls under one pixel; in transformers it may, and then 1×5000 fails.
    """
    scale = preprocessing.longest_edge / max(original_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in original_hw)
    return Frame(original_hw, (height, width), preprocessing.pad_hw)


def pixel_values(pixels: npt.NDArray[np.uint8], frame: Frame, preprocessing: Preprocessing) -> Tensor:
    """Scale, normalise and pad, bit for bit as ``SamImageProcessor``, which needs torchvision and this does not.

    Always on the CPU, as in the pipeline: a GPU rounds otherwise.  Returns (1, 3, h, w) in float32.
    """
    channels_first = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    scaled = _resize(channels_first, frame.scaled_hw).to(torch.float32)
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
