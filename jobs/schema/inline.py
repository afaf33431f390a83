"""A job's masks in its own JSON, for who asked for them: small results, such as those of a click."""

from __future__ import annotations

from pydantic import Field

from maskfleet.jobs.schema.wire import Wire

#: The most that masks may take inline, as JSON.  They are in the manifest, which the API reads for each answer.
MAX_INLINE_BYTES = 2**20


class Rle(Wire):
    """A mask in COCO's compressed run-length encoding, as `pycocotools.mask.decode` takes it."""

    size: tuple[int, int] = Field(description="[height, width] of the image.")
    counts: str


class InlineMask(Wire):
    """One mask."""

    segmentation: Rle | tuple[tuple[int, ...], ...] = Field(
        description="As in COCO: an RLE, or polygons, each [x0, y0, x1, y1, …]. Polygons run along the edges of the "
        "pixels, so they hold exactly the mask's; a hole is joined to the outline by a slit of no width."
    )
    area: int
    bbox: tuple[float, float, float, float] = Field(description="[x, y, width, height] in pixels.")
    predicted_iou: float
    stability_score: float
    prompt: int | None = Field(None, description="The number of its prompt, from 0; null in mode everything.")
    candidate: int | None = Field(None, description="Which of the three candidates, with multimask.")


class InlineMasks(Wire):
    """The masks of a job, in the order of the manifest."""

    form: str = Field(description="`rle` or `polygons`, as asked for.", examples=["rle"])
    image_width: int
    image_height: int
    masks: tuple[InlineMask, ...]


class WhyNotInline(Wire):
    """Why a job that succeeded has no masks inline, although it asked for them."""

    code: str = Field(examples=["inline_too_large"])
    detail: str


class InlineOmitted(WhyNotInline):
    """The same, as the API shows it."""

    url: str | None = Field(None, description="Where the masks are, if they are anywhere.")
