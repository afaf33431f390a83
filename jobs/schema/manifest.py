"""The manifest: what a job that succeeded wrote, object by object.  It is written last, and once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from maskfleet.jobs.schema.inline import InlineMasks, WhyNotInline
from maskfleet.jobs.schema.record import ImageContent, ImageGeoreference, ImageValues, Metrics, ResultSummary
from maskfleet.jobs.schema.spec import Inline
from maskfleet.jobs.schema.wire import Wire

#: The files by which a later job finds the masks again.
COCO_FILE, MASKS_ZIP, MASKS_FOLDER = "coco.json", "masks.zip", "masks/"
#: And the candidates.
CANDIDATES_FILE = "candidates.npz"


class ManifestFile(Wire):
    """One object of a result."""

    name: str = Field(description="As in `GET /v1/jobs/{id}/files/{name}`.", examples=["masks/0000.png"])
    key: str = Field(description="The object's key in the bucket.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="The SHA-256 of the object's bytes, in hex.")
    content_type: str
    url: str | None = Field(None, description="A presigned link; only in the API's responses, made for each one.")


class MaskSummary(Wire):
    """A summary of one mask; its pixels are in the files."""

    area: int
    bbox: tuple[float, float, float, float] = Field(description="[x, y, width, height] in pixels.")
    predicted_iou: float
    stability_score: float
    prompt: int | None = Field(None, description="The number of its prompt, from 0; null in mode everything.")
    candidate: int | None = Field(None, description="Which of the three candidates, with multimask.")


class SegmentedBy(Wire):
    """The job that made the masks which another one wrote."""

    job_id: str
    mode: str
    spec: dict[str, Any] | None = Field(None, description="All that it asked for, but its webhook.")  # Any: JSON


class Manifest(Wire):
    """A job's result."""

    job_id: str
    attempt: int
    mode: str
    model: str
    source: str | None = Field(
        None, description="The image: its S3 URI, its URL without what signs it, or the id of its upload."
    )
    file_name: str | None = Field(None, description="The image's name, as in `coco.json`.")
    spec: dict[str, Any] | None = Field(None, description="All that the job asked for, but its webhook.")  # Any: JSON
    created_at: datetime
    image_width: int
    image_height: int
    image_values: ImageValues | None = Field(
        None, description="How an image of more than 8 bits became one of 8; absent for any other."
    )
    georeference: ImageGeoreference | None = Field(
        None,
        exclude_if=lambda georeference: georeference is None,
        description="Where a GeoTIFF lies on a map; absent for any other image.",
    )
    image: ImageContent | None = Field(None, description="The image. Absent in results of earlier versions.")
    masks: tuple[MaskSummary, ...]
    files: tuple[ManifestFile, ...]
    inline: InlineMasks | None = Field(
        None, exclude_if=lambda masks: masks is None, description="The masks themselves, if the job asked for them."
    )
    inline_omitted: WhyNotInline | None = Field(
        None, exclude_if=lambda why: why is None, description="Why they are not here although it did."
    )
    segmented_by: SegmentedBy | None = Field(
        None,
        exclude_if=lambda job: job is None,
        description="The job that made the masks, in modes `export` and `refilter`; its outputs may be gone by now.",
    )
    metrics: Metrics

    @property
    def origin(self) -> SegmentedBy:
        """The job that made the masks: this one, or the one that it wrote them for."""
        return self.segmented_by or SegmentedBy(job_id=self.job_id, mode=self.mode, spec=self.spec)

    @property
    def keeps_masks(self) -> bool:
        """Whether all pixels of the masks can be read from the result, without the image and the model."""
        names = {file.name for file in self.files}
        is_inline = self.inline is not None and self.inline.form == Inline.RLE
        pictures = sum(name.startswith(MASKS_FOLDER) for name in names)
        return bool(names & {COCO_FILE, MASKS_ZIP}) or is_inline or pictures >= len(self.masks)

    def summary(self, folder: str, key: str, *, image_named: bool = False) -> ResultSummary:
        """Return what the job's record keeps of it.

        folder: of all that the job wrote.  key: the manifest's own.  image_named: whether later jobs may name the
        image.
        """
        return ResultSummary(
            prefix=f"{folder}/",
            manifest_key=key,
            masks=len(self.masks),
            best_score=max((mask.predicted_iou for mask in self.masks), default=None),
            metrics=self.metrics,
            image_values=self.image_values,
            image=self.image if image_named else None,
        )
