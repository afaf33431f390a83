"""One checkpoint's network and what is particular to its family, here through the library's own modules.

``Family`` is what the rest of the worker sees.  A fast path for a family overrides ``encode`` and ``decode`` and leaves
the rest as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar  # Any: the library's models ship no types

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from transformers import BaseImageProcessor

from maskfleet.worker.sam.candidates import Candidates, decode_with_library
from maskfleet.worker.sam.embedding import Embedding, Preprocessing, frame_of, pixel_values
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.sam.reference import BatchSlot


class Family:
    """A checkpoint of one family.  network: float32, no gradients, on its device already."""

    #: The library's class.
    network_class: ClassVar[str]
    #: Tensors of the embedding's size that a decoded prompt holds at its peak.
    embeddings_per_point: ClassVar[int]
    #: Whether the network itself chooses when one mask is wanted; else it is always asked for three.
    chooses_one: ClassVar[bool] = False
    #: Whether prompts of different shapes may share a batch: what pads the shorter ones must count for nothing.
    pads_prompts: bool = False
    #: What a batch may take on a CPU, beside the weights: an ordinary machine has 8 GB.
    cpu_batch_bytes: int = 4 * 2**30

    def __init__(self, network: Any, preprocessing: Preprocessing) -> None:
        self.network = network
        self.preprocessing = preprocessing
        #: What the encoder computes in.  Half of it is faster and gives other masks; the decoder is always float32.
        self.encoder_dtype = torch.float32

    @classmethod
    def read(cls, source: str) -> tuple[Any, Preprocessing]:
        """Read a checkpoint from a hub id or a folder; raises what the library raises."""
        numbers, _ = BaseImageProcessor.get_image_processor_dict(source)
        preprocessing = cls.read_preprocessing(numbers)
        # float32 whatever the file holds: half precision gives other masks.
        network = getattr(transformers, cls.network_class).from_pretrained(source, dtype=torch.float32)
        return network.eval().requires_grad_(False), preprocessing

    @classmethod
    def read_preprocessing(cls, numbers: dict[str, Any]) -> Preprocessing:
        """Read the image processor's configuration."""
        raise NotImplementedError

    @property
    def low_hw(self) -> tuple[int, int]:
        """The size of the decoder's masks, and of a ``mask_input``."""
        side = 4 * self._positions_per_side
        return side, side

    @property
    def point_bytes(self) -> int:
        """What the decoder holds for each prompt of a batch, about."""
        embedding = self._positions_per_side**2 * int(self.network.config.mask_decoder_config.hidden_size) * 4
        return self.embeddings_per_point * embedding

    @property
    def rounds_otherwise(self) -> bool:
        """Whether the last digits of what ``decode`` gives are others than the library's."""
        return False

    @property
    def redecodes_exactly(self) -> bool:
        """Whether ``decode_in_slot`` gives the library's very bits on this machine."""
        return True

    def prepare(self) -> None:
        """Find out what this machine decides, once, when the settings are made and before the first image."""

    def embed(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
        """Encode an image or a crop of one.  pixels: (H, W, 3) RGB."""
        height, width = pixels.shape[:2]
        frame = frame_of((height, width), self.preprocessing)
        values = pixel_values(pixels, frame, self.preprocessing).to(self.network.device)
        with torch.inference_mode():
            return Embedding(self.encode(values), frame)

    def encode(self, values: Tensor) -> Any:
        """Run the encoder.  values: (1, 3, h, w).  Returns what ``decode`` finds in the embedding."""
        half = self.encoder_dtype is not torch.float32
        with torch.autocast(values.device.type, self.encoder_dtype, enabled=half):
            embeddings = self.network.get_image_embeddings(values)
        return in_float32(embeddings) if half else embeddings

    def decode(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        """Give the candidates for each prompt of a batch: three, or without multimask one where the network chooses."""
        return self.decode_with_library(embedding, batch, multimask=multimask)

    def for_library(self, embedding: Embedding) -> Embedding:
        """Of an embedding, what ``decode_with_library`` reads."""
        return embedding

    def decode_with_library(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        """Decode as ``decode`` does, with the library's own modules and so with its own last digits."""
        image = self.image_arguments(embedding.values)
        with torch.inference_mode():
            return decode_with_library(self.network, batch, multimask=multimask or not self.chooses_one, **image)

    def decode_in_slot(
        self,
        embedding: Embedding,
        prompt: PromptBatch,
        slot: BatchSlot,  # noqa: ARG002
        *,
        multimask: bool = True,
    ) -> Candidates:
        """Decode one prompt with the digits that it has in the library's batch; the first row is its."""
        return self.decode_with_library(embedding, prompt, multimask=multimask)

    def image_arguments(self, values: Any) -> dict[str, Any]:
        """Name an image's embeddings as the network's arguments."""
        return {"image_embeddings": values}

    def random_embeddings(self, generator: torch.Generator) -> Any:
        """Return noise of the shape that the encoder's embeddings have."""
        return self._noise(generator, int(self.network.config.mask_decoder_config.hidden_size), 1)

    def _noise(self, generator: torch.Generator, channels: int, scale: int) -> Tensor:
        side = scale * self._positions_per_side
        return torch.randn(1, channels, side, side, generator=generator).to(self.network.device)

    @property
    def _positions_per_side(self) -> int:
        prompt_encoder = self.network.config.prompt_encoder_config
        return int(prompt_encoder.image_size) // int(prompt_encoder.patch_size)


def in_float32(values: Any) -> Any:
    """The same tensor, or list or tuple of tensors, in float32."""
    if isinstance(values, list | tuple):
        return type(values)(in_float32(value) for value in values)
    return values.float()
