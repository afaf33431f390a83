"""The families of models that the worker runs, by the ``model_type`` of a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from maskfleet.worker.sam.families.edgetam import EdgeTam
from maskfleet.worker.sam.families.library import Family
from maskfleet.worker.sam.families.sam import Sam
from maskfleet.worker.sam.families.sam2 import Sam2
from maskfleet.worker.sam.families.sam_hq import SamHq

__all__ = ["FAMILIES", "Family"]

#: Checkpoints that can also track objects in videos name the video model; their image part is the same.
FAMILIES: Mapping[str, type[Family]] = MappingProxyType(
    {
        "sam": Sam,
        "sam_hq": SamHq,
        "sam2": Sam2,
        "sam2_video": Sam2,
        "edgetam": EdgeTam,
        "edgetam_video": EdgeTam,
    }
)
