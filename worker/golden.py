"""The test of a model: it segments the golden picture, a photograph of the package, and must find the golden masks.

The golden masks of a checkpoint are in its folder, in ``golden.json``; those of the bundled one are there.  To record
them for another, on a machine that is known to compute rightly:

    python -m maskfleet.worker.golden MODEL GOLDEN.json [--revision REVISION]

Without golden masks, the first ones are compared with later: see ``ModelTest``.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskfleet.data import DEMO_PHOTO
from maskfleet.jobs.errors import JobError, ModelWrong
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.jobs.schema.spec import BoxJob, ImageSource, PointJob, PromptParams
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.rle import decode_rle
from maskfleet.worker.node.device import is_out_of_memory
from maskfleet.worker.sam.embedding import Embedding
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment import segment

logger = get_logger()

#: A model whose golden masks overlap less with those that are expected is wrong.
LEAST_IOU = 0.98
#: Its predicted IoUs may be off by so much: half precision moves those of the bundled model by 0.003.
MOST_SCORE_OFF = 0.03
#: Masks that overlap less than this when the encoder computes in bfloat16 say little, and are not recorded.
LEAST_IOU_IN_HALF_PRECISION = 0.99
#: In a checkpoint's folder.
GOLDEN_FILE = "golden.json"

#: What each of the model's ways to be asked is tested with: points on and off a coin, boxes, both.
_PICTURE = ImageSource(s3_uri="s3://golden/coins.png")  # read from the package; a job names something
_POINTS = PointJob(
    mode="point",
    image=_PICTURE,
    prompts=(
        Prompt(points=((335.0, 43.0),)),
        Prompt(points=((209.0, 191.0), (225.0, 215.0)), labels=(1, 0)),
        Prompt(points=((45.0, 262.0),)),
    ),
    params=PromptParams(multimask=True),
)
_BOXES = BoxJob(
    mode="box",
    image=_PICTURE,
    prompts=(
        Prompt(box=(304.0, 14.0, 366.0, 73.0)),
        Prompt(box=(313.0, 155.0, 380.0, 219.0)),
        Prompt(box=(17.0, 232.0, 76.0, 286.0), points=((45.0, 262.0),)),
    ),
)
_MAX_PIXELS = 10**6


class GoldenMask(BaseModel):
    """A mask of the golden picture.  prompt, candidate: as in a job's result.  counts: COCO's compressed RLE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["point", "box"]
    prompt: int = Field(ge=0)
    candidate: int | None
    size: tuple[int, int]
    counts: Annotated[str, Field(max_length=100_000)]
    predicted_iou: float


class Golden(BaseModel):
    """The golden masks of a checkpoint.  picture: the SHA-256 of the file that they are of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture: str
    masks: tuple[GoldenMask, ...] = Field(min_length=1)


class ModelTest:
    """Tests that a model still computes what it should.  One encoder pass; no embedding is kept or looked for.

    With golden masks, those must be found: IoU and scores within the bounds above.  Without, the first test must find
    finite scores and a mask that is neither empty nor the whole picture, and its masks are what later tests compare
    with; that shows a model that changes, not one that was wrong from the start.
    """

    def __init__(self, model: SegmentationModel, golden: Golden | None) -> None:
        self._model = model
        self._golden = golden
        self._is_recorded = golden is not None
        self._has_passed = False

    def __call__(self) -> None:
        """Raise ModelWrong unless the model finds the expected masks.

        One that passed before and lacks memory now is not judged: what takes it may be somebody else's.
        """
        started = time.monotonic()
        try:
            found = _segment_golden(self._model, golden_picture())
        except JobError as error:
            raise ModelWrong(f"It does not segment the golden picture: {error}", recorded=self._is_recorded) from error
        except Exception as error:  # however the model fails, it is a model that fails
            if is_out_of_memory(error) and self._has_passed:
                logger.warning("model_not_tested", reason="out of memory")
                return
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            raise ModelWrong(f"It does not segment the golden picture: {reason}", recorded=True) from error
        if why := _unsound(found):
            raise ModelWrong(why, recorded=self._is_recorded)
        if self._golden is None:
            self._golden = Golden(picture=_sha256(), masks=found)
            self._has_passed = True
            logger.info("model_test_begun", masks=len(found), test_s=round(time.monotonic() - started, 3))
            return
        iou, score_off = _compare(found, self._golden.masks)
        if not (iou >= LEAST_IOU and score_off <= MOST_SCORE_OFF):
            raise ModelWrong(
                f"Of the golden picture's masks, one overlaps the expected one by {iou:.3f} ({LEAST_IOU} are needed), "
                f"and one's predicted IoU is off by {score_off:.3f} ({MOST_SCORE_OFF} may be).",
                recorded=self._is_recorded,
            )
        self._has_passed = True
        logger.info("model_tested", iou=round(iou, 4), test_s=round(time.monotonic() - started, 3))


def read_golden(model: str, file: str) -> Golden | None:
    """Return a checkpoint's golden masks; None if it has none.

    model: a hub id or a folder.  file: of golden masks; empty for GOLDEN_FILE in that folder, if it is there.
    Raises ModelWrong if there is a file that does not hold them.
    """
    path = Path(file or Path(model).expanduser() / GOLDEN_FILE)
    if not file and not path.is_file():
        return None
    try:
        golden = Golden.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelWrong(f"The golden masks {path} cannot be read: {error.strerror}.", recorded=True) from error
    except ValidationError as error:
        why = f"The file {path} does not hold golden masks: record them anew, see docs/models.md."
        raise ModelWrong(why, recorded=True) from error
    if golden.picture != _sha256():
        why = f"The golden masks in {path} are of another picture: record them anew, see docs/models.md."
        raise ModelWrong(why, recorded=True)
    return golden


def record_golden(model: str, revision: str = "") -> Golden:
    """Compute a checkpoint's golden masks in float32 on the CPU, without those that half precision changes much."""
    picture = golden_picture()
    exact = _segment_golden(load_model(model, "cpu", revision=revision or None), picture)
    if why := _unsound(exact):
        raise ModelWrong(why, recorded=False)
    half = _segment_golden(load_model(model, "cpu", "bfloat16", revision=revision or None), picture)
    firm = tuple(
        one for one, other in zip(exact, half, strict=True) if mask_iou(one, other) >= LEAST_IOU_IN_HALF_PRECISION
    )
    if not firm:
        raise ModelWrong("In half precision it finds none of the golden picture's masks.", recorded=False)
    return Golden(picture=_sha256(), masks=firm)


def golden_picture() -> Photo:
    """Return the golden picture."""
    return decode_photo(DEMO_PHOTO.read_bytes(), _MAX_PIXELS)


def mask_iou(one: GoldenMask, other: GoldenMask) -> float:
    """Return how far two masks overlap; 1 for two that are empty."""
    first, second = (decode_rle(mask.counts, mask.size) for mask in (one, other))
    union = int(np.logical_or(first, second).sum())
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


class _Once:
    """The embedding of the golden picture, for both of a test's jobs."""

    def __init__(self) -> None:
        self._embedding: Embedding | None = None

    def find(self, size_wh: tuple[int, int]) -> tuple[Embedding, EmbeddingOrigin] | None:  # noqa: ARG002  as in steps
        return (self._embedding, EmbeddingOrigin.MEMORY) if self._embedding is not None else None

    def keep(self, embedding: Embedding) -> None:
        self._embedding = embedding


def _segment_golden(model: SegmentationModel, picture: Photo) -> tuple[GoldenMask, ...]:
    known = _Once()
    return tuple(
        _golden_mask(job.mode, mask)
        for job in (_POINTS, _BOXES)
        for mask in segment(picture, job, model, known=known).masks
    )


def _golden_mask(mode: Literal["point", "box"], mask: Mask) -> GoldenMask:
    return GoldenMask(
        mode=mode,
        prompt=mask.prompt or 0,
        candidate=mask.candidate,
        size=mask.size_hw,
        counts=mask.counts,
        predicted_iou=mask.predicted_iou,
    )


def _unsound(found: Sequence[GoldenMask]) -> str | None:
    """Return why masks cannot be right, whatever the model; None if they may be."""
    if not all(math.isfinite(mask.predicted_iou) for mask in found):
        return "Its scores on the golden picture are not finite numbers."
    areas = [int(decode_rle(mask.counts, mask.size).sum()) for mask in found]
    if not any(0 < area < math.prod(mask.size) for area, mask in zip(areas, found, strict=True)):
        return "Each of its masks of the golden picture is empty, or the whole picture."
    return None


def _compare(found: Sequence[GoldenMask], expected: Sequence[GoldenMask]) -> tuple[float, float]:
    """Return the smallest IoU with an expected mask, 0 if one is missing, and by how much a score is off at most."""
    by_place = {(mask.mode, mask.prompt, mask.candidate): mask for mask in found}
    pairs = [(by_place.get((one.mode, one.prompt, one.candidate)), one) for one in expected]
    if any(mask is None or mask.size != one.size for mask, one in pairs):
        return 0.0, math.inf
    present = [(mask, one) for mask, one in pairs if mask is not None]
    return (
        min(mask_iou(mask, one) for mask, one in present),
        max(abs(mask.predicted_iou - one.predicted_iou) for mask, one in present),
    )


def _sha256() -> str:
    return hashlib.sha256(DEMO_PHOTO.read_bytes()).hexdigest()


def main() -> None:
    """Record a checkpoint's golden masks."""
    parser = argparse.ArgumentParser(prog="python -m maskfleet.worker.golden", description="Record golden masks.")
    parser.add_argument("model", help="A hub id or a folder.")
    parser.add_argument("file", type=Path, help="Where to write them; golden.json in a model's own folder is found.")
    parser.add_argument("--revision", default="", help="Of a hub id.")
    arguments = parser.parse_args()
    try:
        golden = record_golden(arguments.model, arguments.revision)
    except JobError as error:
        sys.exit(str(error))
    arguments.file.write_text(golden.model_dump_json(indent=1) + "\n")
    print(f"{len(golden.masks)} masks of the golden picture are in {arguments.file}.")  # noqa: T201  a command's output


if __name__ == "__main__":
    main()
