"""Measure what a click costs on a new image and on one that is known, in CPU seconds of the process.

``python -m benchmarks.known_image [--threads 2] [--family sam]``: a checkpoint of ViT-B's shape (or of SAM 2.1 hiera
tiny's) with random weights, an image of 1 MP as PNG, one click each time.  A click is what a worker does for it
besides talking to Redis and S3: decode the file, encode, decode the prompt, make the mask.  On a known image: find the
embedding in memory, or read its file.  The median of several clicks on each side, which alternate.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.core import picture, sam2, vit_b
from benchmarks.machine import keep, spread
from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.jobs.schema.spec import ImageSource, PointJob
from maskfleet.worker.embeddings.cache import EmbeddingCache
from maskfleet.worker.embeddings.file import read_file, write_file
from maskfleet.worker.embeddings.memory import Kept
from maskfleet.worker.image.decode import decode_photo
from maskfleet.worker.masks import mask as masks
from maskfleet.worker.sam.model import load_model
from maskfleet.worker.segment import segment

CLICKS = 3
MAX_PIXELS = 100_000_000
SHA256 = "0" * 64
CHECKPOINTS = {"sam": vit_b, "sam2": sam2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--family", choices=("sam", "sam2"), default="sam")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = CHECKPOINTS[options.family](Path(folder))
        figures = measure(str(checkpoint))
    name = "known_image" if options.family == "sam" else "known_image_sam2"
    keep(name, f"python -m benchmarks.known_image --threads {options.threads} --family {options.family}", figures)


def measure(checkpoint: str) -> dict[str, Any]:
    model = load_model(checkpoint, "cpu")
    masks.warm_up()
    data = png(picture("coins", 1))
    cache = EmbeddingCache(model, None, 2**30)
    spec = PointJob(mode="point", image=ImageSource(s3_uri="s3://bench/any.png"), prompts=[{"points": [[300, 250]]}])

    def new() -> None:
        segment(decode_photo(data, MAX_PIXELS), spec, model)

    photo = decode_photo(data, MAX_PIXELS)
    known = cache.of("bench", SHA256, ask_store=False)
    segment(photo, spec, model, known=known)
    gone = replace(photo, pixels=np.empty((0, 0, 3), np.uint8))
    named = model.family.named(model.family.embed(photo.pixels))
    file = write_file(named, cache.kind, "bench", SHA256)

    def in_memory() -> None:
        found = segment(gone, spec, model, known=known)
        assert found.metrics.embedding is EmbeddingOrigin.MEMORY

    def from_file() -> None:
        cache.memory.keep(("bench", SHA256), Kept(read_file(file, cache.kind, "bench", SHA256), stored=True))
        in_memory()

    def prepare() -> None:
        with torch.inference_mode():
            model.family.prepared(model.family.from_named(named))

    sides: dict[str, Callable[[], None]] = {
        "new image": new,
        "known, in memory, and prepared for the decoder": in_memory,
        "known, from its file": from_file,
        "of that, preparing it for the decoder": prepare,
        "writing the file, after the answer": lambda: write_file(named, cache.kind, "bench", SHA256) and None,
    }
    for side in sides.values():
        side()
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(CLICKS):
        for name, side in sides.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            side()
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - started_cpu)
    first = statistics.median(cpu["new image"])
    return {
        "cpu_s": {name: spread(seconds) for name, seconds in cpu.items()},
        "wall_s": {name: spread(seconds) for name, seconds in wall.items()},
        "times_less_cpu": {name: first / statistics.median(cpu[name]) for name in list(sides)[1:3]},
        "file_mib": len(file) / 2**20,
        "memory_mib": cache.memory.bytes / 2**20,
    }


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    main()
