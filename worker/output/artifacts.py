"""The interface of the step from an image to masks, whose results are then written.

The rest of a worker node knows no more about that step than this, and imports no torch for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from maskfleet.jobs.schema.inline import InlineMasks, WhyNotInline
from maskfleet.jobs.schema.manifest import MaskSummary
from maskfleet.jobs.schema.record import Metrics, ModelSpec

if TYPE_CHECKING:
    from maskfleet.worker.embeddings.job_image import JobImage
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
    """A job's masks, ready to be written.  metrics: of this step.  artifacts: each is created on demand.

    keep: writes what later jobs on the image may use, and may take its time; None if nothing is kept of it.
    inline: the masks for the manifest, if the job asked for them and they are small enough; else why not.
    """

    masks: tuple[MaskSummary, ...]
    metrics: Metrics
    artifacts: Iterator[Artifact]
    keep: Callable[[], None] | None = None
    inline: InlineMasks | WhyNotInline | None = None


class SegmentStep(Protocol):
    """Segments an image as the spec says, and reports to the watch, which may raise to stop it."""

    def __call__(self, photo: JobImage, spec: ModelSpec, watch: Watch, mask_inputs: MaskInputs) -> Segmented: ...
