"""SAM 2 and 2.1 on still images, hiera tiny to large.

What differs from SAM: an image is stretched over the square input, whatever its aspect ratio; its embedding is a list
of three maps, of which the two finer ones are used in upscaling the masks; masks are scaled to the image in one
bilinear step; and the decoder has a token that says whether there is an object at all.
Source: Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_processing_utils import get_size_dict
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from maskfleet.worker.sam.embedding import Embedding, Preprocessing
from maskfleet.worker.sam.families.fast import Fast
from maskfleet.worker.sam.families.library import Family
from maskfleet.worker.sam.fast.sam import FastSam
from maskfleet.worker.sam.fast.sam2 import FastSam2
from maskfleet.worker.sam.hiera import encode_in_strips

#: The names of an embedding's three maps, in the encoder's order: two finer ones by their side, and the coarsest.
_MAPS = ("four_times", "twice", "image")


class LibrarySam2(Family):
    """SAM 2, without its memory of frames, with the library's own decoder.

    If one mask is wanted, the network itself chooses it: the single-mask output if that is stable, else the best of
    the three.
    """

    network_class: ClassVar[str] = "Sam2Model"
    #: From the peak of transformers' decoder with 24 points: 10.3.
    embeddings_per_point: ClassVar[int] = 11
    chooses_one: ClassVar[bool] = True

    @classmethod
    def read_preprocessing(cls, numbers: dict[str, Any]) -> Preprocessing:
        # Sam2ImageProcessor cannot be used: it needs torchvision.  These are its defaults.
        size = get_size_dict(numbers.get("size") or 1024)
        return Preprocessing(
            input_hw=(int(size["height"]), int(size["width"])),
            longest_edge=None,
            rescale_factor=float(numbers.get("rescale_factor") or 1 / 255),
            mean=tuple(numbers.get("image_mean") or IMAGENET_DEFAULT_MEAN),
            std=tuple(numbers.get("image_std") or IMAGENET_DEFAULT_STD),
        )

    def named(self, embedding: Embedding) -> dict[str, Tensor]:
        return dict(zip(_MAPS, self.for_library(embedding).values, strict=True))

    def from_named(self, tensors: Mapping[str, Tensor]) -> Any:
        return [tensors[name] for name in _MAPS]

    @property
    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super().embedding_shapes
        _, channels, side, _ = shapes["image"]
        finer = {name: (1, channels // (2 * k), k * side, k * side) for name, k in (("four_times", 4), ("twice", 2))}
        return {**finer, **shapes}

    def random_embeddings(self, generator: torch.Generator) -> Any:
        channels = int(self.network.config.mask_decoder_config.hidden_size)
        return [
            self._noise(generator, channels // 8, 4),
            self._noise(generator, channels // 4, 2),
            super().random_embeddings(generator),
        ]


class Sam2(Fast, LibrarySam2):
    """SAM 2 with the fast decoder."""

    fast_decoder: ClassVar[type[FastSam]] = FastSam2

    def __init__(self, network: Any, preprocessing: Preprocessing) -> None:
        super().__init__(network, preprocessing)
        encode_in_strips(network.vision_encoder)
