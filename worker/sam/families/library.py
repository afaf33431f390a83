"""One checkpoint's network and what is specific to its family, here with the library's own modules.

``Family`` is the interface to the rest of the worker.  A fast path for a family overrides ``prepared`` and ``decode``
and keeps the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar  # Any: the library's models ship no types

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from transformers import BaseImageProcessor

from maskfleet.jobs.logs import get_logger
from maskfleet.worker.sam.candidates import Candidates, decode_with_library
from maskfleet.worker.sam.compiled import Compile, Encoder, compile_encoder
from maskfleet.worker.sam.embedding import Embedding, Preprocessing, frame_of, pixel_values
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.sam.reference import BatchSlot

logger = get_logger()


class Family:
    """A checkpoint of one family.  network: float32, without gradients, already on its device."""

    #: The name of the library's class.
    network_class: ClassVar[str]
    #: Peak memory per decoded prompt, in tensors of the embedding's size.
    embeddings_per_point: ClassVar[int]
    #: Whether the network itself chooses if one mask is wanted; otherwise it is always asked for three.
    chooses_one: ClassVar[bool] = False
    #: Whether prompts of different shapes may share a batch: the padding of the shorter ones must have no effect.
    pads_prompts: bool = False
    #: The memory that a batch may use on a CPU, besides the weights: an ordinary machine has 8 GB.
    cpu_batch_bytes: int = 4 * 2**30

    def __init__(self, network: Any, preprocessing: Preprocessing) -> None:
        self.network = network
        self.preprocessing = preprocessing
        #: The encoder's precision.  Half precision is faster and changes the masks slightly.  The decoder's is float32.
        self.encoder_dtype = torch.float32
        #: Whether ``prepare`` compiles the encoder, and how.
        self.compile_as: Compile = "off"
        self._compiled: Encoder | None = None

    @classmethod
    def read(cls, source: str, revision: str | None = None) -> tuple[Any, Preprocessing]:
        """Load a checkpoint from a hub id or a folder; raises what the library raises.

        revision: of a hub id, a commit, tag or branch; by default its latest.
        """
        at = {"revision": revision} if revision else {}
        numbers, _ = BaseImageProcessor.get_image_processor_dict(source, **at)
        preprocessing = cls.read_preprocessing(numbers)
        # float32 whatever the file contains: half precision changes the masks slightly.
        network = getattr(transformers, cls.network_class).from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,  # a pickled checkpoint is a program
            **at,
        )
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
        """The approximate memory that the decoder needs per prompt of a batch, in bytes."""
        embedding = self._positions_per_side**2 * int(self.network.config.mask_decoder_config.hidden_size) * 4
        return self.embeddings_per_point * embedding

    @property
    def encoder_is_compiled(self) -> bool:
        """Whether ``prepare`` has compiled the encoder, which may have failed."""
        return self._compiled is not None

    @property
    def encoder_is_the_librarys(self) -> bool:
        """Whether embeddings have the library's digits: neither in half precision nor from a compiled encoder."""
        return self.encoder_dtype is torch.float32 and not self.encoder_is_compiled

    @property
    def rounds_otherwise(self) -> bool:
        """Whether the results of ``decode`` differ from the library's by rounding."""
        return False

    @property
    def redecodes_exactly(self) -> bool:
        """Whether ``decode_in_slot`` matches the library bit for bit on this machine."""
        return True

    def prepare(self) -> None:
        """Do what depends on this machine, once, after the settings are final and before the first image."""
        if self.compile_as == "off":
            return
        noise = torch.randn(1, 3, *self.preprocessing.input_hw, generator=torch.Generator().manual_seed(0))
        values = noise.to(
            self.network.device
        )  # outside inference mode, as the pixels of images: torch compiles for that
        with torch.inference_mode(), self._autocast():
            self._compiled = compile_encoder(self.run_encoder, values, self.compile_as)

    def embed(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
        """Encode an image or a crop of one.  pixels: (H, W, 3) RGB."""
        height, width = pixels.shape[:2]
        frame = frame_of((height, width), self.preprocessing)
        values = pixel_values(pixels, frame, self.preprocessing)
        if self._compiled is not None:
            values = values.contiguous()  # the layout it was compiled for; those of images differ
        values = values.to(self.network.device, non_blocking=True)
        with torch.inference_mode():
            return Embedding(self.prepared(self.encode(values)), frame)

    def encode(self, values: Tensor) -> Any:
        """Run the encoder.  values: (1, 3, h, w)."""
        with self._autocast():
            embeddings = (self._compiled or self.run_encoder)(values)
        if self.encoder_dtype is torch.float32:
            return embeddings
        if self.encoder_dtype is torch.float16 and not is_finite(embeddings):
            logger.warning("encoder_overflowed", precision="float16")  # numbers above 65504: all masks would be empty
            return self.run_encoder(values)
        return in_float32(embeddings)

    def run_encoder(self, values: Tensor) -> Any:
        """Run the library's encoder, in the precision that is set around it."""
        return self.network.get_image_embeddings(values)

    def decode(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        """Return the candidates for each prompt of a batch: three, or without multimask one if the network chooses."""
        return self.decode_with_library(embedding, batch, multimask=multimask)

    def for_library(self, embedding: Embedding) -> Embedding:
        """Return the part of an embedding that ``decode_with_library`` reads."""
        return embedding

    def decode_with_library(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        """Decode like ``decode``, but with the library's own modules and so with its own rounding."""
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
        """Decode one prompt with the rounding that it has in the library's batch; the result is the first row."""
        return self.decode_with_library(embedding, prompt, multimask=multimask)

    def image_arguments(self, values: Any) -> dict[str, Any]:
        """Return an image's embeddings as the network's keyword arguments."""
        return {"image_embeddings": values}

    def prepared(self, embeddings: Any) -> Any:
        """Return the ``values`` of an Embedding, from the encoder's output."""
        return embeddings

    def named(self, embedding: Embedding) -> dict[str, Tensor]:
        """Return the encoder's output as tensors by name, as it is kept for later jobs."""
        return {"image": self.for_library(embedding).values}

    def from_named(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return the encoder's output, from what ``named`` returned."""
        return tensors["image"]

    @property
    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what ``named`` returns."""
        side = self._positions_per_side
        return {"image": (1, int(self.network.config.mask_decoder_config.hidden_size), side, side)}

    def random_embeddings(self, generator: torch.Generator) -> Any:
        """Return noise of the shape of the encoder's embeddings."""
        return self._noise(generator, int(self.network.config.mask_decoder_config.hidden_size), 1)

    def _noise(self, generator: torch.Generator, channels: int, scale: int) -> Tensor:
        side = scale * self._positions_per_side
        return torch.randn(1, channels, side, side, generator=generator).to(self.network.device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.encoder_dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.network.device.type, self.encoder_dtype)

    @property
    def _positions_per_side(self) -> int:
        prompt_encoder = self.network.config.prompt_encoder_config
        return int(prompt_encoder.image_size) // int(prompt_encoder.patch_size)


def is_finite(values: Any) -> bool:
    """Return whether a tensor, or each of a list or tuple of tensors, holds finite numbers only."""
    if isinstance(values, list | tuple):
        return all(is_finite(value) for value in values)
    return bool(values.isfinite().all())


def in_float32(values: Any) -> Any:
    """Return the same tensor, or list or tuple of tensors, in float32."""
    if isinstance(values, list | tuple):
        return type(values)(in_float32(value) for value in values)
    return values.float()
