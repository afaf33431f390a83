"""An earlier job's masks in further formats, or others of its candidates, from what it wrote.

Only an overlay needs the image, and none a model.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pydantic import ValidationError
from pydantic_core import from_json

from maskfleet.jobs.errors import InvalidImage, InvalidRequest, NotFound, RecordUnreadable
from maskfleet.jobs.prompt_checks import fit_prompts
from maskfleet.jobs.schema.inline import Rle
from maskfleet.jobs.schema.manifest import (
    CANDIDATES_FILE,
    COCO_FILE,
    MASKS_FOLDER,
    MASKS_ZIP,
    Manifest,
    ManifestFile,
    MaskSummary,
)
from maskfleet.jobs.schema.record import EmbeddingOrigin, ImageContent, Metrics, Spec
from maskfleet.jobs.schema.spec import (
    DerivedJob,
    EmbedJob,
    EverythingParams,
    Inline,
    Output,
    RefilterJob,
    read_spec,
)
from maskfleet.jobs.schema.wire import key_fault
from maskfleet.jobs.storage import Store, manifest_key, result_prefix
from maskfleet.worker.candidates.kept import read_candidates
from maskfleet.worker.candidates.refilter import refilter
from maskfleet.worker.embeddings.job_image import JobImage, georeference_from
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.image.values import Pixels, ValueRange
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.output.archive import unpacked
from maskfleet.worker.output.artifacts import Segmented
from maskfleet.worker.output.result import segmented
from maskfleet.worker.segmentation import Segmentation, SegmentMetrics

#: No model ran for a job that only writes.
_NO_WORK = Metrics(embedding=EmbeddingOrigin.NONE)


@dataclass(frozen=True, slots=True)
class EarlierImage:
    """The image of an earlier job, as far as its manifest knows it."""

    manifest: Manifest

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.manifest.image_width, self.manifest.image_height

    @property
    def values(self) -> ValueRange | None:
        values = self.manifest.image_values
        return ValueRange(values.low, values.high, values.stretched) if values else None

    @property
    def georeference(self) -> Georeference | None:
        return georeference_from(self.manifest.georeference) if self.manifest.georeference else None

    @property
    def content(self) -> ImageContent | None:
        return self.manifest.image

    @property
    def pixels(self) -> Pixels:
        raise RuntimeError("only an overlay needs an image's pixels, and it is made of the image itself")


@dataclass(frozen=True, slots=True)
class EarlierResult:
    """What an earlier job wrote.  check: may raise, to stop reading."""

    manifest: Manifest
    tenant: str
    store: Store
    check: Callable[[], None]
    read_at_once: int = 8

    @classmethod
    def find(cls, job_id: str, tenant: str, store: Store, check: Callable[[], None]) -> EarlierResult:
        """Return a tenant's result.  Raises NotFound (``result_not_found``), RecordUnreadable."""
        try:
            manifest = Manifest.model_validate_json(store.read(manifest_key(tenant, job_id)))
        except NotFound as error:
            raise _gone(job_id) from error
        except ValidationError as error:
            raise RecordUnreadable("result") from error
        return cls(manifest, tenant, store, check)

    @property
    def image(self) -> EarlierImage:
        return EarlierImage(self.manifest)

    def spec(self, job: DerivedJob) -> Spec:
        """Return the spec that the masks were made by, with the outputs, and the thresholds, that are asked for now."""
        spec = read_spec(json.dumps(self.manifest.origin.spec))
        if isinstance(spec, EmbedJob | DerivedJob):
            raise _not_kept(job.from_job)
        asked = ("outputs", "overlay_format", "inline", "image", *(("params",) if job.mode == "refilter" else ()))
        return spec.model_copy(update={name: getattr(job, name) for name in asked})

    def refiltered(self, params: EverythingParams) -> Segmentation:
        """Return the masks of a full run with these parameters.

        Raises InvalidRequest (``candidates_not_kept``), RecordUnreadable, and as Store does.
        """
        file = next((file for file in self.manifest.files if file.name == CANDIDATES_FILE), None)
        if file is None:
            raise InvalidRequest("candidates_not_kept", f"{self.manifest.job_id} kept no candidates.", status=409)
        masks = refilter(read_candidates(self._read(file)), params)
        return Segmentation(self.image.size_wh, masks, _metrics(self.manifest.metrics))

    def segmentation(self, spec: Spec) -> Segmentation:
        """Return the masks, from what holds most of them: coco.json, else the manifest itself, else their PNGs.

        spec: that they were made by.  Raises InvalidRequest (``masks_not_kept``), and as ``find``.
        """
        files = {file.name: file for file in self.manifest.files}
        size_wh = self.image.size_wh
        try:
            if COCO_FILE in files:
                return _of_coco(self._read(files[COCO_FILE]), size_wh)
            masks = self._masks_without_coco(files, size_wh)
            points = [prompt.points for prompt in fit_prompts(spec.prompts, size_wh)]
            return Segmentation(
                size_wh,
                tuple(
                    _mask(counts, summary, size_wh, () if summary.prompt is None else points[summary.prompt])
                    for counts, summary in zip(masks, self.manifest.masks, strict=True)
                ),
                _metrics(self.manifest.metrics),
            )
        except (LookupError, TypeError, ValueError, OSError) as error:  # not as we write it
            raise RecordUnreadable("result") from error

    def _masks_without_coco(self, files: dict[str, ManifestFile], size_wh: tuple[int, int]) -> list[str]:
        if not self.manifest.keeps_masks:
            raise _not_kept(self.manifest.job_id)
        inline = self.manifest.inline
        if inline is not None and inline.form == Inline.RLE:
            return [mask.segmentation.counts for mask in inline.masks if isinstance(mask.segmentation, Rle)]
        if MASKS_ZIP in files:
            return [_counts(data, size_wh) for data in unpacked(self._read(files[MASKS_ZIP]), MASKS_FOLDER)]
        pictures = [file for file in self.manifest.files if file.name.startswith(MASKS_FOLDER)]
        with ThreadPoolExecutor(self.read_at_once) as pool:
            return list(pool.map(lambda file: _counts(self._read(file), size_wh), pictures))

    def _read(self, file: ManifestFile) -> bytes:
        """Read a file of the result, which must be the one that was written."""
        self.check()
        folder = f"{result_prefix(self.tenant, self.manifest.job_id)}/"
        if not file.key.startswith(folder) or key_fault(file.key):
            raise _gone(self.manifest.job_id)
        try:
            data = self.store.read(file.key)
        except NotFound as error:
            raise _gone(self.manifest.job_id) from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise RecordUnreadable("result", f"{file.name} has changed")
        return data


def export(
    job: DerivedJob, earlier: EarlierResult, open_image: Callable[[], JobImage]
) -> tuple[Segmented, EarlierImage | JobImage]:
    """Return what is to be written of an earlier job's masks or candidates, and what is known of the image.

    open_image: fetches it; called if the overlay is asked for.  Raises InvalidImage if it is gone or has changed,
    InvalidRequest, NotFound, RecordUnreadable, and as Store does.
    """
    spec = earlier.spec(job)
    segmentation = earlier.refiltered(job.params) if isinstance(job, RefilterJob) else earlier.segmentation(spec)
    image = _same_image(open_image, earlier.image, job.from_job) if Output.OVERLAY in job.outputs else earlier.image
    return segmented(image, spec, segmentation, _NO_WORK), image


def _same_image(open_image: Callable[[], JobImage], earlier: EarlierImage, job_id: str) -> JobImage:
    changed = InvalidImage(
        "image_changed",
        f"The image is no longer the one that {job_id} segmented, so that no overlay can be made. Leave overlay out.",
    )
    try:
        image = open_image()
    except InvalidImage as error:
        if error.code == changed.code:
            raise changed from error
        raise
    if image.size_wh != earlier.size_wh:
        raise changed
    return image


def _of_coco(data: bytes, size_wh: tuple[int, int]) -> Segmentation:
    document = from_json(data)
    metrics = {field.name: document["metrics"].get(field.name) for field in fields(SegmentMetrics)}
    return Segmentation(size_wh, tuple(map(_of_annotation, document["annotations"])), SegmentMetrics(**metrics))


def _of_annotation(annotation: dict[str, Any]) -> Mask:  # Any: JSON
    height, width = annotation["segmentation"]["size"]
    return Mask(
        counts=annotation["segmentation"]["counts"],
        size_hw=(height, width),
        area=annotation["area"],
        bbox_xywh=tuple(annotation["bbox"]),
        predicted_iou=annotation["predicted_iou"],
        stability_score=annotation["stability_score"],
        point_coords=tuple((x, y) for x, y in annotation["point_coords"]),
        crop_box_xywh=tuple(annotation["crop_box"]),
        prompt=annotation.get("prompt"),
        candidate=annotation.get("candidate"),
    )


def _mask(counts: str, summary: MaskSummary, size_wh: tuple[int, int], points: tuple[tuple[float, float], ...]) -> Mask:
    """Return a mask of which no coco.json says from which point of the grid it is, or from which crop."""
    x, y, width, height = map(int, summary.bbox)  # they are whole pixels, as a mask has them
    return Mask(
        counts=counts,
        size_hw=(size_wh[1], size_wh[0]),
        area=summary.area,
        bbox_xywh=(x, y, width, height),
        predicted_iou=summary.predicted_iou,
        stability_score=summary.stability_score,
        point_coords=points,
        crop_box_xywh=(0, 0, *size_wh),
        prompt=summary.prompt,
        candidate=summary.candidate,
    )


def _counts(png: bytes, size_wh: tuple[int, int]) -> str:
    """Return the RLE of a mask's PNG."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit; the size is the image's, which was accepted
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        if picture.size != size_wh or picture.mode != "1":
            raise ValueError("it is no mask of this image")
        pixels = np.asfortranarray(np.asarray(picture, np.uint8))
    counts = coco_mask.encode(pixels)["counts"]
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _metrics(metrics: Metrics) -> SegmentMetrics:
    return SegmentMetrics(
        embed_s=metrics.embed_s,
        decode_s=metrics.decode_s,
        points=metrics.points,
        batches=None,
        points_per_batch=metrics.points_per_batch,
        candidates=None,
        crops=None,
        decoded_again=metrics.decoded_again,
        decoded_again_exactly=metrics.decoded_again_exactly,
        embedding=metrics.embedding,
    )


def _gone(job_id: str) -> NotFound:
    return NotFound("result_not_found", f"The result of {job_id} is no longer in the store.")


def _not_kept(job_id: str) -> InvalidRequest:
    return InvalidRequest("masks_not_kept", f"{job_id} wrote no masks that others could be made of.", status=409)
