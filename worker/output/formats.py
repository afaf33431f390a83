"""Masks in the output formats of the spec."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.manifest import COCO_FILE, MASKS_FOLDER, MASKS_ZIP
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import Output, OverlayFormat
from maskfleet.worker.candidates.kept import candidates_file
from maskfleet.worker.image.decode import AnyPhoto
from maskfleet.worker.masks import containment
from maskfleet.worker.masks.containment import parents
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.output import blur, painting, png, scaling
from maskfleet.worker.output.archive import Archive
from maskfleet.worker.output.artifacts import Artifact
from maskfleet.worker.output.labels import MAX_LABELS, label_files, label_map, painted_labels
from maskfleet.worker.output.outlines import coco_polygons_file, geojson_file, polygons_of, svg_file, yolo_file
from maskfleet.worker.output.overlay import draw_overlay
from maskfleet.worker.output.painting import mask_bits
from maskfleet.worker.output.png import BITS, RGB, filtered_paeth, filtered_up, write_png
from maskfleet.worker.sam.mask_input import LOGITS_FOLDER
from maskfleet.worker.segmentation import Segmentation

#: The ids of the one image and the one category of a COCO dataset.  Not 0, which pycocotools takes for "none".
IMAGE_ID = CATEGORY_ID = 1
_CATEGORY: dict[str, object] = {"id": CATEGORY_ID, "name": "object", "supercategory": ""}
#: The outputs that are made of masks' PNGs.
_MASK_FILES = frozenset({Output.PNG, Output.MASKS_ZIP})
#: The outputs that are made of one id for each pixel.
_LABEL_FILES = frozenset({Output.LABEL_MAP, Output.PANOPTIC})
#: Of overlays as JPEG and WebP: no difference is seen at this quality.
_QUALITY = 90
_WEBP_METHOD = 2


def make_artifacts(
    photo: AnyPhoto, spec: Spec, segmentation: Segmentation, file_name: str | None = None
) -> Iterator[Artifact]:
    """Yield the outputs that the spec names, one file at a time, and then the candidates, if they were kept.

    file_name: the image's, for the COCO dataset; without one, it is made from the spec's source.
    Raises InvalidRequest: ``too_many_masks`` if a label map has too few ids, ``archive_too_large`` and
    ``outlines_too_large``.
    """
    if _LABEL_FILES.intersection(spec.outputs) and len(segmentation.masks) > MAX_LABELS:
        raise InvalidRequest(
            "too_many_masks",
            f"There are {len(segmentation.masks):,} masks, but a label map holds at most {MAX_LABELS:,}. "
            "Use coco or png instead, or raise the thresholds.",
        )
    name = file_name or spec.image.shown_file_name
    written: set[Output] = set()
    for output in spec.outputs:
        if output in written:
            continue
        # What is made from one pass takes the place of whichever is named first
        together = next((files for files in (_MASK_FILES, _LABEL_FILES) if output in files), frozenset({output}))
        wanted = together.intersection(spec.outputs)
        written |= wanted
        if output is Output.COCO:
            yield Artifact(COCO_FILE, "application/json", coco_json(segmentation, name))
        elif output is Output.COCO_POLYGONS:
            yield coco_polygons_file(_dataset(segmentation, name, polygons_of))
        elif together is _MASK_FILES:
            yield from mask_files(segmentation, wanted)
        elif together is _LABEL_FILES:
            image = _image(segmentation, name)
            yield from label_files(segmentation, wanted, image, _CATEGORY, photo.georeference)
        elif output is Output.GEOJSON:
            yield geojson_file(segmentation, name, photo.georeference)
        elif output is Output.SVG:
            yield svg_file(segmentation)
        elif output is Output.YOLO:
            yield yolo_file(segmentation)
        elif output is Output.LOGITS:
            yield from mask_logits(segmentation)
        else:
            yield overlay_file(draw_overlay(photo, spec, segmentation.masks), spec.overlay_format)
    if segmentation.candidates is not None:
        yield candidates_file(segmentation.candidates)


def coco_json(segmentation: Segmentation, file_name: str) -> bytes:
    """Return a COCO dataset of one image and one category as JSON, one line per mask.

    An annotation also has the fields of SA-1B, ``score``, by which COCO's tools rank results (it is ``predicted_iou``),
    ``parent_id``, the id of the mask that this one is a part of, ``prompt``, the index of the mask's prompt, and
    ``candidate`` with multimask.
    Source: cocodataset.org, "Data format", 1 and 2; and "Results format".
    """
    return "".join(_dataset(segmentation, file_name, _run_length)).encode()


def _dataset(segmentation: Segmentation, file_name: str, shape: Callable[[int, Mask], object]) -> Iterator[str]:
    """Yield a COCO dataset's text.  shape: of a mask by its id, as ``segmentation``; empty if it is to be left out."""
    yield (
        f'{{"info": {{"description": "Masks by Segment Anything, made with maskfleet"}},\n"licenses": [],\n'
        f'"images": [{json.dumps(_image(segmentation, file_name))}],\n"categories": [{json.dumps(_CATEGORY)}],\n'
        '"annotations": [\n'
    )
    separator = ""
    for number, (mask, parent) in enumerate(zip(segmentation.masks, parents(segmentation.masks), strict=True), 1):
        if form := shape(number, mask):
            yield separator + json.dumps(_record(number, mask, parent, form))
            separator = ",\n"
    yield f'\n],\n"metrics": {json.dumps(_known(asdict(segmentation.metrics)))}}}\n'


def _run_length(_: int, mask: Mask) -> dict[str, object]:
    return {"size": list(mask.size_hw), "counts": mask.counts}


def mask_files(segmentation: Segmentation, wanted: Collection[Output]) -> Iterator[Artifact]:
    """Yield a 1-bit PNG for each mask, white inside, numbered from 0 in the order of the records.

    wanted: the files themselves (``png``), one archive of them (``masks_zip``), or both.
    """
    archive = Archive(MASKS_ZIP) if Output.MASKS_ZIP in wanted else None
    for number, mask in enumerate(segmentation.masks):
        file = Artifact(_numbered(MASKS_FOLDER, number, segmentation, "png"), "image/png", mask_png(mask))
        if archive:
            archive.add(file)
        if Output.PNG in wanted:
            yield file
    if archive:
        yield archive.finish()


def mask_png(mask: Mask) -> bytes:
    """Return a mask as a 1-bit PNG."""
    bits = mask_bits(mask)
    return write_png(mask.size_hw[::-1], BITS, filtered_up(bits.rows, 0, len(bits.rows)), bits.top)


def mask_logits(segmentation: Segmentation) -> Iterator[Artifact]:
    """Yield a .npy file for each mask: its logits at the model's resolution, for use as a ``mask_input``."""
    for number, mask in enumerate(segmentation.masks):
        if mask.logits is not None:
            name = _numbered(LOGITS_FOLDER, number, segmentation, "npy")
            yield Artifact(name, "application/octet-stream", write_logits(mask.logits))


def write_logits(logits: npt.NDArray[np.float32]) -> bytes:
    """Write logits as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, logits, allow_pickle=False)
    return buffer.getvalue()


def label_map_png(segmentation: Segmentation) -> bytes:
    """Return a 16-bit PNG: 0 is background, other values are the ids of the masks' records."""
    return label_map(painted_labels(segmentation))


def overlay_file(picture: Image.Image, overlay_format: OverlayFormat) -> Artifact:
    """Return a picture as a file in the format that the spec names."""
    if overlay_format is OverlayFormat.PNG:
        data = write_png(picture.size, RGB, filtered_paeth(np.asarray(picture)))
        return Artifact("overlay.png", "image/png", data)
    buffer = io.BytesIO()
    if overlay_format is OverlayFormat.WEBP:
        picture.save(buffer, "WEBP", quality=_QUALITY, method=_WEBP_METHOD)
        return Artifact("overlay.webp", "image/webp", buffer.getvalue())
    # Colours at full resolution: contours are a few pixels wide.
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return Artifact("overlay.jpg", "image/jpeg", buffer.getvalue())


def warm_up() -> None:
    """Compile the kernels, or load them from the cache; the first time takes seconds."""
    painting.warm_up()
    blur.warm_up()
    png.warm_up()
    scaling.warm_up()
    containment.warm_up()


def _numbered(folder: str, number: int, segmentation: Segmentation, suffix: str) -> str:
    digits = max(4, len(str(len(segmentation.masks) - 1)))
    return f"{folder}{number:0{digits}}.{suffix}"


def _known(metrics: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in metrics.items() if value is not None}


def _image(segmentation: Segmentation, file_name: str) -> dict[str, object]:
    width, height = segmentation.size_wh
    return {"id": IMAGE_ID, "file_name": file_name, "width": width, "height": height}


def _record(number: int, mask: Mask, parent: int | None, form: object) -> dict[str, object]:
    record: dict[str, object] = {
        "id": number,
        "image_id": IMAGE_ID,
        "category_id": CATEGORY_ID,
        "iscrowd": 0,
        "segmentation": form,
        "area": mask.area,
        "bbox": list(mask.bbox_xywh),
        "score": mask.predicted_iou,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "point_coords": [list(point) for point in mask.point_coords],
        "crop_box": list(mask.crop_box_xywh),
        "parent_id": None if parent is None else parent + 1,
    }
    if mask.prompt is not None:
        record["prompt"] = mask.prompt
    if mask.candidate is not None:
        record["candidate"] = mask.candidate
    return record
