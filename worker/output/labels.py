"""Masks as one id for each pixel: the label map, and COCO's panoptic form."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

import numpy as np

from maskfleet.jobs.schema.spec import Output
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.output.artifacts import Artifact
from maskfleet.worker.output.painting import Bytes, Labels, measure_labels, paint_label
from maskfleet.worker.output.png import GREY_16, RGB, filtered_up, write_png
from maskfleet.worker.segmentation import Segmentation

#: The ids of a 16-bit label map, not counting 0, the background.
MAX_LABELS = 65_535
#: Rows that are held as colours at once.
_ROWS_AT_ONCE = 64


def label_files(
    segmentation: Segmentation,
    wanted: Collection[Output],
    image: dict[str, object],
    category: dict[str, object],
    georeference: Georeference | None = None,
) -> Iterator[Artifact]:
    """Yield the label map, the panoptic form, or both.

    image, category: as in the COCO dataset.  georeference: with it, the label map is written as a GeoTIFF, too.
    """
    labels = painted_labels(segmentation)
    if Output.LABEL_MAP in wanted:
        yield Artifact("label_map.png", "image/png", label_map(labels))
        if georeference is not None and georeference.transform is not None:
            from maskfleet.worker.output.geotiff import label_map_geotiff  # most jobs need no tifffile

            data = label_map_geotiff(labels, georeference.transform, georeference.geo_keys)
            yield Artifact("label_map.tif", "image/tiff", data)
    if Output.PANOPTIC in wanted:
        yield Artifact("panoptic.png", "image/png", panoptic_png(labels))
        data = panoptic_json(labels, len(segmentation.masks), image, category)
        yield Artifact("panoptic.json", "application/json", data)


def painted_labels(segmentation: Segmentation) -> Labels:
    """Return (H, W): 0 is background, other values are the ids of the masks' records, in a PNG's order of bytes.

    Where masks overlap the smaller one is on top, so that parts are not hidden by the objects they belong to; it is
    painted first, since to read which pixels are taken costs less than to write them again.
    Peak memory is the labels, two bytes a pixel, an eighth for what is taken, and another for the bits of one mask.
    """
    width, height = segmentation.size_wh
    labels, taken = np.zeros((height, width), np.uint16), np.zeros((height, (width + 7) // 8), np.uint8)
    for number, mask in sorted(enumerate(segmentation.masks, 1), key=lambda pair: (pair[1].area, -pair[0])):
        paint_label(mask, _stored(number), labels, taken)
    return labels


def label_map(labels: Labels) -> bytes:
    """Return labels as a 16-bit PNG."""
    height, width = labels.shape
    return write_png((width, height), GREY_16, filtered_up(labels.view(np.uint8), 0, height))


def panoptic_png(labels: Labels) -> bytes:
    """Return labels as a PNG whose colours are the ids: red + 256 · green + 65,536 · blue."""
    height, width = labels.shape
    return write_png((width, height), RGB, _colours(labels))


def panoptic_json(labels: Labels, masks: int, image: dict[str, object], category: dict[str, object]) -> bytes:
    """Return COCO's panoptic annotation: a segment for each mask that is seen, measured as far as it is seen.

    Source: cocodataset.org, "Data format", 4.
    """
    areas, boxes = np.zeros(MAX_LABELS + 1, np.int64), np.zeros((MAX_LABELS + 1, 4), np.int64)
    measure_labels(labels, areas, boxes)
    segments = []
    for number in range(1, masks + 1):
        stored = _stored(number)
        if area := int(areas[stored]):
            left, top, right, bottom = boxes[stored].tolist()
            bbox = [left, top, right - left, bottom - top]
            segments.append({"id": number, "category_id": category["id"], "iscrowd": 0, "area": area, "bbox": bbox})
    annotation = {"image_id": image["id"], "file_name": "panoptic.png", "segments_info": segments}
    document = {
        "info": {"description": "Masks by Segment Anything, made with maskfleet"},
        "licenses": [],
        "images": [image],
        "categories": [{**category, "isthing": 1}],
        "annotations": [annotation],
    }
    return json.dumps(document).encode() + b"\n"


def _stored(number: int) -> int:
    """Return an id as it is stored: a PNG's numbers are big-endian."""
    return int(np.array(number, ">u2").view(np.uint16))


def _colours(labels: Labels) -> Iterator[Bytes]:
    height, width = labels.shape
    stored = labels.view(np.uint8).reshape(height, width, 2)
    for start in range(0, height, _ROWS_AT_ONCE):
        above, stop = max(0, start - 1), min(start + _ROWS_AT_ONCE, height)
        rows = np.zeros((stop - above, width, 3), np.uint8)
        rows[..., :2] = stored[above:stop, :, ::-1]
        yield from filtered_up(rows.reshape(stop - above, 3 * width), start - above, stop - above)
