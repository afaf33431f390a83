"""EdgeTAM: SAM 2's decoder behind a small convolutional encoder (Zhou et al. 2025, "On-Device Track Anything Model").

The encoder is timm's RepViT, so the package ``timm`` must be installed.
"""

from __future__ import annotations

from typing import ClassVar

from maskfleet.worker.sam.families.sam2 import Sam2


class EdgeTam(Sam2):
    """EdgeTAM on still images."""

    network_class: ClassVar[str] = "EdgeTamModel"
