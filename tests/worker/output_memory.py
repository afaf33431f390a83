"""Make each output of images' masks and print the peaks of memory that took, in bytes, a line of JSON for each image.

A process of its own, since a peak is that of a process.  Beyond what it held with the photo and the masks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.core_side import resident_gb
from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.jobs.schema.spec import EverythingJob, ImageSource, Output
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.memory import give_back
from maskfleet.worker.masks.rle import encode_rle
from maskfleet.worker.output import formats
from maskfleet.worker.output.formats import coco_json, label_map_png, mask_files, mask_png
from maskfleet.worker.output.labels import label_files
from maskfleet.worker.output.outlines import geojson_file, svg_file, yolo_file
from maskfleet.worker.output.overlay import draw_overlay
from maskfleet.worker.segmentation import Segmentation, SegmentMetrics

NO_METRICS = SegmentMetrics(0, 0, 0, 0, 0, 0, 0, 0, False, EmbeddingOrigin.COMPUTED)


def disc(size_hw: tuple[int, int], middle_xy: tuple[float, float], radius: float) -> Mask:
    """A disc, written from where its columns start and stop."""
    height, width = size_hw
    x = np.arange(width)
    half = np.sqrt(np.maximum(radius**2 - (x - middle_xy[0]) ** 2, 0))
    top = np.clip(np.ceil(middle_xy[1] - half), 0, height).astype(np.int64)
    bottom = np.clip(np.ceil(middle_xy[1] + half), 0, height).astype(np.int64)
    inside = bottom > top
    changes = np.stack([x * height + top, x * height + bottom], axis=1)[inside].ravel()
    columns = np.flatnonzero(inside)
    box = (columns[0], top[inside].min(), len(columns), bottom[inside].max() - top[inside].min())
    area = int((bottom - top)[inside].sum())
    counts = encode_rle(changes, size_hw)
    return Mask(counts, size_hw, area, tuple(map(float, box)), 0.9, 0.9, (), (0, 0, width, height), None, None)


def main() -> None:
    formats.warm_up()
    for size in sys.argv[1:]:
        width, height = map(int, size.split("x"))
        print(json.dumps(peaks_of(width, height)))  # noqa: T201


def peaks_of(width: int, height: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    middles = random.uniform(0.1, 0.9, (20, 2)) * [width, height]
    masks = [disc((height, width), (x, y), random.uniform(0.02, 0.3) * height) for x, y in middles]
    masks.append(disc((height, width), (width / 2, height / 2), 2 * width))  # all of the image
    found = Segmentation((width, height), tuple(masks), NO_METRICS)
    photo = Photo(np.full((height, width, 3), 90, np.uint8), (width, height), "JPEG")
    spec = EverythingJob(mode="everything", image=ImageSource(s3_uri="s3://photos/any.jpg"))

    def pngs() -> None:
        for mask in masks:
            mask_png(mask)

    work: dict[str, Callable[[], object]] = {
        "png": pngs,
        "masks_zip": lambda: list(mask_files(found, {Output.MASKS_ZIP})),
        "label_map": lambda: label_map_png(found),
        "panoptic": lambda: list(label_files(found, {Output.PANOPTIC}, {"id": 1}, {"id": 1})),
        "overlay": lambda: draw_overlay(photo, spec, masks),
        "geojson": lambda: geojson_file(found, "any.jpg"),
        "svg": lambda: svg_file(found),
        "yolo": lambda: yolo_file(found),
        "coco": lambda: coco_json(found, "any.jpg"),
    }
    peaks = {}
    for name, make in work.items():
        give_back()
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before_gb = resident_gb("VmRSS")
        make()
        peaks[name] = (resident_gb("VmHWM") - before_gb) * 2**30
    return peaks


if __name__ == "__main__":
    main()
