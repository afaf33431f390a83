"""Prompts: how a caller points at an object to segment.

Coordinates are pixels of the original image as a viewer shows it (EXIF orientation applied), origin top left, x to the
right, y down.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from maskfleet.jobs.schema.wire import JobId, Request, S3Uri, UploadId

#: A bound on one request, as those in `spec` are: a spec is kept in Redis, which holds small things only.
MAX_POINTS_PER_PROMPT = 256
Point = tuple[float, float]
Box = tuple[float, float, float, float]


class MaskInput(Request):
    """An earlier mask's logits, to be refined: an .npy file of the size of the model's own masks.

    Give exactly one of the three; ``job_id`` names one of your own jobs that had ``logits`` among its outputs.
    """

    s3_uri: S3Uri | None = Field(None, description="An object in a bucket that the operator allows.")
    upload_id: UploadId | None = Field(None, description="An upload made with `POST /v1/uploads`.")
    job_id: JobId | None = Field(None, description="A job that succeeded.")
    mask: int | None = Field(None, ge=0, description="With job_id: which of its masks, counted from 0.")

    @model_validator(mode="after")
    def _names_one_source(self) -> MaskInput:
        given = [name for name in ("s3_uri", "upload_id", "job_id") if getattr(self, name) is not None]
        if len(given) != 1 or (self.mask is None) != (self.job_id is None):
            raise PydanticCustomError(
                "mask_input_source", "Give exactly one of s3_uri, upload_id, or job_id together with mask."
            )
        return self


class Prompt(Request):
    """One object to segment: points on it (label 1) and off it (label 0), a box around it, or both.

    With a ``mask_input``, the model starts from an earlier mask.
    """

    points: tuple[Point, ...] = Field(
        (),
        max_length=MAX_POINTS_PER_PROMPT,
        description="[x, y] in pixels. Up to one pixel outside the image is moved to its edge.",
        examples=[[[140, 60]]],
    )
    labels: tuple[Literal[0, 1], ...] | None = Field(
        None,
        max_length=MAX_POINTS_PER_PROMPT,
        description="One for each point: 1 on the object, 0 off it. Default: all 1.",
    )
    box: Box | None = Field(
        None,
        description="[x_min, y_min, x_max, y_max] in pixels. Up to one pixel outside the image is moved to its edge.",
        examples=[[100, 20, 180, 100]],
    )
    mask_input: MaskInput | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Prompt:
        if self.labels is not None and len(self.labels) != len(self.points):
            raise PydanticCustomError(
                "labels_length",
                "There are {points} points and {labels} labels; give one label for each point.",
                {"points": len(self.points), "labels": len(self.labels)},
            )
        if self.box is not None:
            x_min, y_min, x_max, y_max = self.box
            if x_max <= x_min or y_max <= y_min:
                raise PydanticCustomError(
                    "invalid_box", "A box is [x_min, y_min, x_max, y_max], with each min below its max."
                )
        return self

    @property
    def point_labels(self) -> tuple[int, ...]:
        """One label for each point; all 1 when none were given."""
        return self.labels if self.labels is not None else (1,) * len(self.points)
