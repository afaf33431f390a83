"""The interface of the step from an image to masks, whose results are then written.

The rest of a worker node knows no more about that step than this, and imports no torch for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from maskfleet.jobs.schema.manifest import MaskSummary
from maskfleet.jobs.schema.record import Metrics, Spec
from maskfleet.worker.image.decode import Photo

if TYPE_CHECKING:
    from maskfleet.worker.sam.prompts import MaskInputs
    from maskfleet.worker.steps import Watch


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a result.  name: its path within the result."""

    name: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Segmented:
    """A job's masks, ready to be written.  metrics: of this step.  artifacts: each is created on demand."""

    masks: tuple[MaskSummary, ...]
    metrics: Metrics
    artifacts: Iterator[Artifact]


class SegmentStep(Protocol):
    """Segments a photo as the spec says, and reports to the watch, which may raise to stop it."""

    def __call__(self, photo: Photo, spec: Spec, watch: Watch, mask_inputs: MaskInputs) -> Segmented: ...
