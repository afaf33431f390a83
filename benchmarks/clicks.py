"""Measure clicks: twenty on one photograph, each one request to the service, beside a loop over the library.

    python -m benchmarks.clicks
    python -m benchmarks.clicks --model demo --photographs 1

The local stack runs on this machine with one worker, and is idle but for the clicks.  A click is a job of one point
with ``Prefer: wait``, ``inline`` and no outputs: its answer has the mask.  The library's side is a loop over
transformers' ``SamModel``, with the image's embedding computed once and kept by hand, and the mask at the image's size.
The two sides take turns, click by click.  The first click on a photograph includes reading and encoding it, and of the
service also the upload.  ``vit-b`` has ViT-B's shape and random
weights: its masks are noise, of a hundred times more runs than trained ones have.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from transformers import SamImageProcessor, SamModel

from benchmarks.core import picture, vit_b
from benchmarks.machine import ROOT, keep, percentile
from maskfleet import Client
from maskfleet.jobs.schema.record import JobView

CLICKS, MEGAPIXELS = 20, 1.0
DEMO = ROOT / "models" / "sam-demo"


class Library:
    """The library's side: a model, and the embedding of the photograph at hand."""

    def __init__(self, checkpoint: Path) -> None:
        self._model = SamModel.from_pretrained(checkpoint).eval()
        self._processor = SamImageProcessor.from_pretrained(checkpoint)
        self._sizes: tuple[Any, Any] = (None, None)  # Any: tensors of the library's
        self._embedding: Any = None

    @torch.inference_mode()
    def open(self, data: bytes) -> None:
        """Encode a photograph."""
        photo = Image.open(io.BytesIO(data)).convert("RGB")
        inputs = self._processor(images=photo, return_tensors="pt")
        self._sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        self._embedding = self._model.get_image_embeddings(inputs["pixel_values"])

    @torch.inference_mode()
    def click(self, point: tuple[int, int]) -> np.ndarray[Any, Any]:
        """Return the mask at a point."""
        scale_hw = self._sizes[1][0] / self._sizes[0][0]
        scaled = torch.tensor(point, dtype=torch.float32) * scale_hw.flip(0)
        found = self._model(
            input_points=scaled[None, None, None],
            image_embeddings=self._embedding,
            multimask_output=True,
        )
        best = found.iou_scores[0, 0].argmax()
        masks = self._processor.post_process_masks(found.pred_masks[:, :, best : best + 1], *self._sizes)
        mask: np.ndarray[Any, Any] = masks[0][0, 0].numpy()
        return mask


@contextmanager
def running_stack(checkpoint: Path, threads: int) -> Iterator[Client]:
    """Run the local stack with a model; yield a client of it."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MASKFLEET_TORCH_THREADS": str(threads),
        "MASKFLEET_LOG_LEVEL": "WARNING",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "maskfleet", "up", "--json", "--data", folder, "--model", str(checkpoint)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as stack:
            try:
                assert stack.stdout is not None
                ready = json.loads(stack.stdout.readline())
                with Client(ready["api_url"], ready["api_key"]) as client:
                    yield client
            finally:
                stack.terminate()


def photographs(count: int) -> Iterator[bytes]:
    """Yield photographs of different content, as JPEG."""
    coins = Image.fromarray(picture("coins", MEGAPIXELS))
    for number in range(count):
        turned = ImageOps.mirror(coins) if number % 2 else coins
        buffer = io.BytesIO()
        turned.rotate(90 * (number // 2), expand=True).save(buffer, "JPEG", quality=90 - number)
        yield buffer.getvalue()


def click(client: Client, upload_id: str, point: tuple[int, int]) -> JobView:
    """Click through the service."""
    job = client.submit(
        mode="point",
        image={"upload_id": upload_id},
        prompts=[{"points": [point]}],
        inline="rle",
        outputs=[],
        held_s=60,
    )
    while not job.ended:  # a first click, whose encoding takes longer than a response is held
        job = client.get(job.id, held_s=60)
    assert job.inline is not None, job.error or job.inline_omitted
    return job


def measure(checkpoint: Path, count: int, threads: int) -> dict[str, object]:
    """Click on photographs, through the service and in the library; return how long clicks took."""
    torch.set_num_threads(threads)
    library = Library(checkpoint)
    times: dict[str, dict[str, list[float]]] = {side: {"first": [], "later": []} for side in ("service", "library")}
    stages: dict[str, list[float]] = {}
    differing = []
    points = np.random.default_rng(1)
    with running_stack(checkpoint, threads) as client:
        for number, data in enumerate(photographs(count + 1)):
            width, height = Image.open(io.BytesIO(data)).size
            upload_id = ""
            for turn in range(CLICKS):
                point = (int(points.integers(width)), int(points.integers(height)))
                began = time.perf_counter()
                upload_id = upload_id or client.upload(data)
                job = click(client, upload_id, point)
                served = time.perf_counter()
                if turn == 0:
                    library.open(data)
                mask = library.click(point)
                ended = time.perf_counter()
                if number == 0:  # a warm-up of both sides
                    continue
                kind = "later" if turn else "first"
                times["service"][kind].append(served - began)
                times["library"][kind].append(ended - served)
                differing.append(pixels_that_differ(job, mask))
                for stage, seconds in stages_of(job, served - began).items() if turn else ():
                    stages.setdefault(stage, []).append(seconds)
    return {
        **{side: {kind: summary(of) for kind, of in kinds.items()} for side, kinds in times.items()},
        "later_times_the_library": round(
            percentile(times["service"]["later"], 50) / percentile(times["library"]["later"], 50), 2
        ),
        "stages_of_later_clicks_p50_ms": {stage: round(1000 * percentile(of, 50), 1) for stage, of in stages.items()},
        "pixels_that_differ": {"median": percentile(differing, 50), "max": max(differing)},
        "megapixels": MEGAPIXELS,
        "photographs": count,
        "threads": threads,
    }


def stages_of(job: JobView, total_s: float) -> dict[str, float]:
    """Return how long each stage took: by Redis' clock, and the worker's own."""
    assert job.queue_s is not None
    assert job.run_s is not None
    assert job.result is not None
    own = job.result.metrics
    return {
        "in the queue": job.queue_s,
        "at the worker": job.run_s,
        "of that: image": own.fetch_s,
        "of that: encoder": own.embed_s,
        "of that: decoder and masks": own.decode_s,
        "before and after": total_s - job.queue_s - job.run_s,
    }


def pixels_that_differ(job: JobView, mask: np.ndarray[Any, Any]) -> float:
    assert job.inline is not None
    (own,) = job.inline.masks
    return float((coco_mask.decode(own.segmentation.model_dump()).astype(bool) != mask).sum())  # type: ignore[union-attr]  # an RLE, as asked for


def summary(seconds: list[float]) -> dict[str, float]:
    return {f"p{percent}_ms": round(1000 * percentile(seconds, percent), 1) for percent in (50, 95)} | {
        "clicks": len(seconds)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "vit-b"), action="append", help="[default: both]")
    parser.add_argument("--photographs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    figures: dict[str, object] = {"load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or ("demo", "vit-b"):
            checkpoint = DEMO if name == "demo" else vit_b(Path(folder) / "vit-b")
            figures[name] = measure(checkpoint, options.photographs, options.threads)
    keep("clicks", "python -m benchmarks.clicks", figures)


if __name__ == "__main__":
    main()
