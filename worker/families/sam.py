"""SAM: base, large and huge (Kirillov et al. 2023, "Segment Anything")."""

from __future__ import annotations

from typing import Any, ClassVar

import structlog
from torch import Tensor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from worker.attention import attend_in_chunks
from worker.decoder import Candidates
from worker.embedding import Embedding, Preprocessing
from worker.families.library import Family
from worker.fast_sam import HELD_ON_CPU_BYTES, FastSam, unsuited
from worker.prompts import PromptBatch

_log = structlog.get_logger()


class LibrarySam(Family):
    """SAM, through the library's own decoder.

    Its single-mask output is not used: the best of the three candidates by predicted IoU stands for "the mask", as in
    the library's guide, and it is always one of those that ``multimask`` gives.
    """

    network_class: ClassVar[str] = "SamModel"
    #: From the peak of transformers' decoder on ViT-B: 2.6 GB over the weights with 64 points, that is 41 MB a point,
    #: of 4 MB embeddings.
    embeddings_per_point: ClassVar[int] = 10

    @classmethod
    def read_preprocessing(cls, numbers: dict[str, Any]) -> Preprocessing:
        # The library's own reading: it fills in what is left out, and takes a bare number for a size.
        processor: Any = SamImageProcessorPil.from_dict(numbers)
        return Preprocessing(
            input_hw=(int(processor.pad_size["height"]), int(processor.pad_size["width"])),
            longest_edge=int(processor.size["longest_edge"]),
            rescale_factor=float(processor.rescale_factor),
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        )


class Sam(LibrarySam):
    """SAM, the fast way; through the library where a checkpoint is built otherwise than those that are known."""

    def __init__(self, network: Any, preprocessing: Preprocessing) -> None:
        super().__init__(network, preprocessing)
        attend_in_chunks(network.vision_encoder)
        reason = unsuited(network)
        self._fast = FastSam(network) if reason is None else None
        if self._fast is None:
            _log.warning("decoding_slowly", reason=reason)
            return
        self.pads_prompts = True
        self.cpu_batch_bytes = HELD_ON_CPU_BYTES

    @property
    def point_bytes(self) -> int:
        return super().point_bytes if self._fast is None else self._fast.point_bytes

    def encode(self, values: Tensor) -> Any:
        embedding = super().encode(values)
        return embedding if self._fast is None else self._fast.image_state(embedding)

    def decode(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        if self._fast is None:
            return super().decode(embedding, batch, multimask=multimask)
        return self._fast.decode(embedding.values, batch)
