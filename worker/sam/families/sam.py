"""SAM: base, large and huge (Kirillov et al. 2023, "Segment Anything")."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from maskfleet.worker.sam.attention import attend_in_chunks
from maskfleet.worker.sam.embedding import Preprocessing
from maskfleet.worker.sam.families.fast import Fast
from maskfleet.worker.sam.families.library import Family
from maskfleet.worker.sam.fast.sam import FastSam


class LibrarySam(Family):
    """SAM with the library's own decoder.

    Its single-mask output is not used: "the mask" is the best of the three candidates by predicted IoU, as in the
    library's guide, so it is always one of those that ``multimask`` returns.
    """

    network_class: ClassVar[str] = "SamModel"
    #: From the peak of transformers' decoder on ViT-B: 2.6 GB above the weights with 64 points, that is 41 MB a point,
    #: of 4 MB embeddings.
    embeddings_per_point: ClassVar[int] = 10

    @classmethod
    def read_preprocessing(cls, numbers: dict[str, Any]) -> Preprocessing:
        # Read by the library itself: it fills in defaults and accepts a bare number as a size.
        processor: Any = SamImageProcessorPil.from_dict(numbers)
        return Preprocessing(
            input_hw=(int(processor.pad_size["height"]), int(processor.pad_size["width"])),
            longest_edge=int(processor.size["longest_edge"]),
            rescale_factor=float(processor.rescale_factor),
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        )


class Sam(Fast, LibrarySam):
    """SAM with the fast decoder."""

    fast_decoder: ClassVar[type[FastSam]] = FastSam

    def __init__(self, network: Any, preprocessing: Preprocessing) -> None:
        super().__init__(network, preprocessing)
        attend_in_chunks(network.vision_encoder)
