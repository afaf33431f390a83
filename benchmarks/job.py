"""Measure a whole job by stage, from the image in the store to the results in it, and the library's way beside it.

    python -m benchmarks.job
    python -m benchmarks.job --megapixels 1 4 --runs 5 --library-batches 0
    python -m benchmarks.job --megapixels --sides ours    # only how outputs grow with the number of masks

Mode everything on the photograph of coins, enlarged, as a JPEG in a real S3 on this machine; outputs coco, png,
label_map and overlay; one thread.  Ours are the steps of a worker's attempt.  The library's side is transformers'
pipeline with Pillow, NumPy and pycocotools.  Each runs in its own process, and after a warm-up the two alternate:
library, ours, library, ours.  Figures are medians with minimum and maximum.

The library's decoding takes up to half an hour, and is linear in points (see `benchmarks.growth`).  Of the grid's
batches ``--library-batches`` are decoded, and their time is multiplied; 0 decodes all.

How outputs grow with the number of masks is measured with drawn blobs of SA-1B's sizes, 37 and 300 on 18 MP.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.core import picture
from benchmarks.machine import ROOT, keep, spread
from benchmarks.masks import INPUT, LOW, plant, scaled
from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.jobs.schema.spec import EverythingJob, Output, OverlayFormat
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.servers import start_s3
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.measure import keep_logits_window, measure, trace
from maskfleet.worker.masks.resampling import two_steps
from maskfleet.worker.masks.rle import encode_rle
from maskfleet.worker.output.formats import coco_json, label_map_png, mask_files, overlay_file, warm_up
from maskfleet.worker.output.overlay import draw_overlay
from maskfleet.worker.segmentation import Segmentation, SegmentMetrics

MODEL = ROOT / "models" / "sam-demo"
BUCKET = "bench"
OUTPUTS = ("coco", "png", "label_map", "overlay")
MASK_COUNTS = (37, 300)
NO_METRICS = SegmentMetrics(0, 0, 0, 0, 0, 0, 0, 0, False, EmbeddingOrigin.COMPUTED)


class Side:
    """One side's process."""

    def __init__(self, name: str, environment: dict[str, str], batches: int) -> None:
        command = [sys.executable, "-m", "benchmarks.job_side", name, str(MODEL), str(batches)]
        self._process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._read() == "ready"

    def run(self, key: str, points: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"key": key, "points": points}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read())
        return answer

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def compare(store: Store, sides: dict[str, Side], megapixels: float, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate between the sides on one image."""
    key = f"images/{megapixels:g}.jpg"
    buffer = io.BytesIO()
    Image.fromarray(picture("coins", megapixels)).save(buffer, "JPEG", quality=92)
    store.put(key, buffer.getvalue(), "image/jpeg")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for run in range(options.runs + 1):
        for name, side in sides.items():
            done = side.run(key, options.points)
            if run:  # the first is a warm-up
                runs[name].append(done)
    row: dict[str, Any] = {"megapixels": megapixels, "file_bytes": len(buffer.getvalue())}
    for name, of_side in runs.items():
        outputs_s = [sum(done["stages"][output] for output in OUTPUTS) for done in of_side]
        row[name] = {
            "masks": of_side[0]["masks"],
            "seconds": {stage: _rounded([done["stages"][stage] for done in of_side]) for stage in of_side[0]["stages"]},
            "four_outputs_s": _rounded(outputs_s),
            "bytes": of_side[0]["bytes"],
        }
    whole = {name: row[name]["seconds"]["whole job"]["median"] for name in sides}
    outputs = {name: row[name]["four_outputs_s"]["median"] for name in sides}
    if len(sides) == 2:
        row["times_faster"] = {
            "whole job": round(whole["library"] / whole["ours"], 1),
            "four outputs": round(outputs["library"] / outputs["ours"], 1),
        }
    return row


def grow(runs: int) -> dict[str, Any]:
    """Write the outputs of few and of many masks of the same sizes, alternating, in this process."""
    pixels = picture("coins", 18)
    size_hw = pixels.shape[:2]
    photo = Photo(pixels, (size_hw[1], size_hw[0]), "JPEG")
    spec = EverythingJob(mode="everything", image={"s3_uri": "s3://bench/any.jpg"})
    masks = _blobs(max(MASK_COUNTS), size_hw)
    warm_up()
    seconds: dict[int, list[float]] = {count: [] for count in MASK_COUNTS}
    for _ in range(runs + 1):
        for count in MASK_COUNTS:
            found = Segmentation(photo.size_wh, masks[:count], NO_METRICS)
            started = time.perf_counter()
            coco_json(found, "any.jpg")
            for _ in mask_files(found, {Output.PNG}):
                pass
            label_map_png(found)
            overlay_file(draw_overlay(photo, spec, found.masks), OverlayFormat.PNG)
            seconds[count].append(time.perf_counter() - started)
    figures: dict[str, Any] = {f"{count} masks, s": _rounded(values[1:]) for count, values in seconds.items()}
    few, many = (statistics.median(values[1:]) for values in seconds.values())
    return figures | {"ratio": round(many / few, 2)}


def _blobs(count: int, size_hw: tuple[int, int]) -> tuple[Mask, ...]:
    logits = plant(count, size_hw[0] / size_hw[1])
    bilinear_map = two_steps((LOW, LOW), (INPUT, INPUT), scaled(size_hw), size_hw)
    measures = measure(logits, bilinear_map, 0.0, 1.0)
    masks = []
    for index in range(count):
        window = keep_logits_window(logits[index], measures.windows[index], bilinear_map)
        x0, y0, x1, y1 = measures.boxes_xyxy[index].tolist()
        counts = encode_rle(trace(window, bilinear_map, 0.0, size_hw[0]), size_hw)
        area, box = int(measures.areas[index, 1]), (x0, y0, x1 - x0, y1 - y0)
        masks.append(Mask(counts, size_hw, area, box, 0.9, 0.9, (), (0, 0, size_hw[1], size_hw[0]), None, None))
    return tuple(masks)


def _rounded(values: list[float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in spread(values).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="*", default=[1, 4, 12, 18], help="none: growth alone")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--points", type=int, default=32, help="points along a side of the grid")
    parser.add_argument("--library-batches", type=int, default=4, help="of the library's that are decoded; 0: all")
    parser.add_argument("--sides", choices=("both", "ours"), default="both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, access_key, secret_key = Path(name), secrets.token_hex(8), secrets.token_hex(16)
        server = start_s3(
            folder / "s3", access_key=access_key, secret_key=secret_key, buckets=(BUCKET,), log=folder / "s3.log"
        )
        try:
            fields = {
                "s3_endpoint": server.url, "s3_access_key": access_key, "s3_secret_key": secret_key, "bucket": BUCKET,
            }  # fmt: skip
            environment = {f"MASKFLEET_{field.upper()}": value for field, value in fields.items()}
            names = ("library", "ours") if options.sides == "both" else ("ours",)
            sides = {name: Side(name, environment, options.library_batches) for name in names}
            rows = []
            for megapixels in options.megapixels:
                rows.append(compare(Store(SharedSettings(**fields)), sides, megapixels, options))
                print(json.dumps(rows[-1]), flush=True)
            for side in sides.values():
                side.close()
        finally:
            server.stop()
    command = "python -m benchmarks.job " + " ".join(sys.argv[1:])
    figures = {"threads": 1, "options": vars(options), "jobs": rows, "outputs_by_masks_at_18_mp": grow(options.runs)}
    keep("job", command.strip(), figures)


if __name__ == "__main__":
    main()
