"""SAM-HQ: SAM with one more token, whose mask sharpens the others (Ke et al. 2023, "Segment Anything in High Quality").

Each candidate is SAM's mask plus the high-quality token's.  That mask uses features of the encoder's early
layers, so an embedding is a pair: the image's, and those of the global-attention layers.  The library sorts the three
candidates by predicted IoU, best first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from maskfleet.worker.sam.embedding import Embedding
from maskfleet.worker.sam.families.sam import LibrarySam


class SamHq(LibrarySam):
    """SAM-HQ, prompted and preprocessed as SAM."""

    network_class: ClassVar[str] = "SamHQModel"
    #: From the peak of transformers' decoder with 24 points: 16.9 embeddings each; sharpening works at full width.
    embeddings_per_point: ClassVar[int] = 17

    def run_encoder(self, values: Tensor) -> Any:
        image, layers = super().run_encoder(values)
        return image, layers[:1]  # the decoder reads no others

    def named(self, embedding: Embedding) -> dict[str, Tensor]:
        image, (early,) = self.for_library(embedding).values
        return {"image": image, "early": early}

    def from_named(self, tensors: Mapping[str, Tensor]) -> Any:
        return tensors["image"], [tensors["early"]]

    @property
    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        side = self._positions_per_side
        return {
            **super().embedding_shapes,
            "early": (1, side, side, int(self.network.config.vision_config.hidden_size)),
        }

    def image_arguments(self, values: Any) -> dict[str, Any]:
        image, layers = values
        return {"image_embeddings": image, "intermediate_embeddings": layers}
