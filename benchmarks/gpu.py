"""Measure images a second on a GPU: mode everything, and a few points, for each precision and with compiled encoders.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --models vit-h --precisions bfloat16 --compile off encoder
    python -m benchmarks.gpu --device cpu --models demo --points 4 --runs 1

One image of 1024 × 1024 pixels is segmented again and again, each time from its pixels: scaled, encoded, decoded, and
its masks measured and encoded as COCO's RLE.  Reading a file and writing results is not included.  ``vit-b`` and
``vit-h`` have SAM's shapes and random weights; one candidate in eight passes the IoU filter, as with trained weights,
but their noise overlaps, so few masks are kept.  ``demo`` is the bundled checkpoint.

Each combination runs in its own process: loaded (with what that takes if the encoder is compiled), warmed up by two
jobs, then timed.  ``everything_s`` is a job of ``points``² points, ``few_points_s`` one of seven points, as many as
COCO's images have objects.  ``encoder_s`` is the encoder alone, waited for.  ``peak_gpu_gb`` is what torch allocated at
most, ``held_gpu_gb`` what it had taken from the driver.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from benchmarks.core import picture, vit_b, vit_h
from benchmarks.core_side import SOMEWHERE, STABILITY
from benchmarks.machine import ROOT, describe, keep, spread
from maskfleet.jobs.schema.spec import EverythingJob, PointJob
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import warm_up
from maskfleet.worker.sam.compiled import Compile
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment import segment

SIDE = 1024
WARM_UPS = 2
#: As many as COCO's images have annotated objects: 36,781 in the 5,000 of val2017.
FEW_POINTS = 7
PRECISIONS = ("float32", "bfloat16", "float16")
DEMO = ROOT / "models" / "sam-demo"


def photo() -> Photo:
    pixels = picture("coins", SIDE * SIDE / 1e6, square=True)
    return Photo(np.array(pixels[:SIDE, :SIDE]), (SIDE, SIDE), "PNG")


def everything(points: int) -> EverythingJob:
    params = {"points_per_crop": points, "stability_score_thresh": STABILITY}
    return EverythingJob(mode="everything", image=SOMEWHERE, params=params)


def few_points() -> PointJob:
    places = [(SIDE * (number + 0.5) / FEW_POINTS,) * 2 for number in range(FEW_POINTS)]
    return PointJob(mode="point", image=SOMEWHERE, prompts=[{"points": [place]} for place in places])


def timed(work: Callable[[], object], runs: int) -> dict[str, float]:
    """Time a piece of work that ends on the host."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return {name: round(value, 5) for name, value in spread(seconds).items()}


def encode_and_wait(model: SegmentationModel, image: Photo) -> None:
    model.family.embed(image.pixels)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def one(checkpoint: str, device: str, precision: str, compile_as: Compile, points: int, runs: int) -> dict[str, Any]:
    """Measure one combination in this process."""
    image, jobs = photo(), {"everything_s": everything(points), "few_points_s": few_points()}
    started = time.perf_counter()
    model = load_model(checkpoint, device, precision, compile_as=compile_as)
    warm_up()
    row: dict[str, Any] = {"load_s": round(time.perf_counter() - started, 1)}
    kept = [len(segment(image, job, model).masks) for _ in range(WARM_UPS) for job in jobs.values()]
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    row["encoder_s"] = timed(lambda: encode_and_wait(model, image), runs)
    for name, job in jobs.items():
        row[name] = timed(lambda job=job: segment(image, job, model), runs)  # type: ignore[misc]  # bound now
    row["images_per_s"] = round(1 / row["everything_s"]["median"], 3)
    row["kept"] = kept[0]
    if model.device.type == "cuda":
        row["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated(model.device) / 2**30, 3)
        row["held_gpu_gb"] = round(torch.cuda.memory_reserved(model.device) / 2**30, 3)
    return row


def in_own_process(*arguments: str) -> dict[str, Any]:
    """Measure one combination; what it fails with is its row."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--one", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        return {"failed": (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]}
    # The log of the load, whether the encoder was compiled, precedes the figures.
    *log, figures = ran.stdout.strip().splitlines()
    row: dict[str, Any] = json.loads(figures)
    row["encoder_compiled"] = any("encoder_compiled" in line for line in [*log, *ran.stderr.splitlines()])
    return row


def gpu_name(device: str) -> str | None:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        checkpoint, device, precision, compile_as, points, runs = sys.argv[2:]
        print(json.dumps(one(checkpoint, device, precision, cast(Compile, compile_as), int(points), int(runs))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=("demo", "vit-b", "vit-h"), default=("demo", "vit-b", "vit-h"))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=("float32", "bfloat16"))
    parser.add_argument("--compile", nargs="+", choices=get_args(Compile), default=get_args(Compile))
    parser.add_argument("--points", type=int, default=32, help="points along a side of the grid")
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        makers = {"vit-b": vit_b, "vit-h": vit_h}
        for name in options.models:
            checkpoint = DEMO if name == "demo" else makers[name](Path(folder) / name)
            for precision, compile_as in itertools.product(options.precisions, options.compile):
                row = {"model": name, "precision": precision, "compile": compile_as}
                asked = (options.device, precision, compile_as, options.points, options.runs)
                rows.append({**row, **in_own_process(str(checkpoint), *map(str, asked))})
                print(json.dumps(rows[-1]), flush=True)
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    if options.device == "cpu":
        print(json.dumps({"command": command, "machine": describe(), "rows": rows}, indent=2))
    else:
        keep("gpu", command, {"gpu": gpu_name(options.device), "points": options.points**2, "rows": rows})


if __name__ == "__main__":
    main()
