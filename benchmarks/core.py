"""Mode everything, ours against transformers' pipeline, side by side.

    python -m benchmarks.core --model demo --megapixels 1 4
    python -m benchmarks.core --model demo --megapixels 1 --picture scene
    python -m benchmarks.core --model vit-b --megapixels 1 18 --points 4 --runs 3
    python -m benchmarks.core --model demo --megapixels 1 --allocator tuned
    python -m benchmarks.core --model demo --megapixels 1 --threads 2

Each side runs in a process of its own, and after a warm-up the two take turns: library, ours, library, ours.  The
figures are medians.  ``coins`` is a photograph, where one candidate in fourteen passes the filters; ``scene`` is drawn
so that nearly all pass, which is as hard as it gets for a core that saves its work on those that do not.  A whole
job of 1,024 points is put together from the encoder and from ``points``² decoded points: decoding is linear in points
(see `benchmarks.growth`).  ``vit-b`` is of ViT-B's shape with random weights, whose masks are noise; one in
eight passes the IoU filter, as with trained weights.  ``tuned`` keeps freed memory, by glibc's MALLOC_ settings.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import SamImageProcessor

from benchmarks.machine import RESULTS, describe
from tests.scenes import plain_scene

ROOT = Path(__file__).parent.parent
WHOLE = 32 * 32
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
#: The library holds every candidate of a batch at full size: 16 points at 18 MP are 3.5 GB.
SMALL_BATCH_FROM_MP = 8


class Side:
    """One side's process."""

    def __init__(
        self, name: str, checkpoint: Path, image: Path, batch: int, threads: int, allocator: str, device: str = "cpu"
    ) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | (TUNED if allocator == "tuned" else {})
        command = [sys.executable, "-m", "benchmarks.core_side", name, checkpoint, image, batch, threads, device]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._read() == "ready"

    def run(self, points: int) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{points}\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._read())
        return answer

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def picture(name: str, megapixels: float) -> np.ndarray[Any, Any]:
    """The example photograph of coins, or a drawn scene, enlarged to so many megapixels."""
    if name == "coins":
        small = Image.open(ROOT / "examples" / "coins.png").convert("RGB")
    else:
        small = Image.fromarray(plain_scene(1).pixels)
    scale = (megapixels * 1e6 / (small.width * small.height)) ** 0.5
    return np.asarray(small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BICUBIC))


def vit_b(folder: Path) -> Path:
    """Save a checkpoint of ViT-B's shape with random weights that keeps masks of the coins.

    Its IoU head is shifted so that one candidate in eight passes at 0.88, and its logits are as large as trained ones.
    """
    from tests.worker.networks import random_sam

    network = random_sam(
        256, 8, 64, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        global_attn_indexes=[2, 5, 8, 11], window_size=14,
    )  # fmt: skip
    for tower in network.mask_decoder.output_hypernetworks_mlps:
        tower.proj_out.weight *= 10
        tower.proj_out.bias *= 10
    processor = SamImageProcessor()
    inputs = processor(images=picture("coins", 1), return_tensors="pt")
    steps = torch.arange(64.0, 1024, 128)
    grid = torch.cartesian_prod(steps, steps)[None, :, None]
    with torch.inference_mode():
        embedding = network.get_image_embeddings(inputs["pixel_values"])
        scores = network(input_points=grid, image_embeddings=embedding).iou_scores
    network.mask_decoder.iou_prediction_head.proj_out.bias += 0.88 - scores.quantile(7 / 8)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def measure(checkpoint: Path, folder: Path, megapixels: float, options: argparse.Namespace) -> dict[str, object]:
    image = folder / "image.npy"
    np.save(image, picture(options.picture, megapixels))
    batch = 16 if megapixels >= SMALL_BATCH_FROM_MP else 64
    names = ("library", "ours")
    sides = {
        name: Side(name, checkpoint, image, batch, options.threads, options.allocator, options.device) for name in names
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for side in sides.values():
        side.run(2)  # code that only masks that are kept need
    for _ in range(options.runs):
        for name in names:
            runs[name].append(sides[name].run(options.points))
    for side in sides.values():
        side.close()
    factor = WHOLE / options.points**2
    row: dict[str, object] = {"megapixels": megapixels, "points_per_batch": batch}
    whole = {}
    for name in names:
        middle = {key: statistics.median(run[key] for run in runs[name]) for key in runs[name][0]}
        totals = [run["encode_s"] + factor * run["decode_s"] for run in runs[name]]
        whole[name] = statistics.median(totals)
        row[name] = {
            "encode_s": round(middle["encode_s"], 2),
            "decode_s_per_64_points": round(middle["decode_s"] * 64 / options.points**2, 3),
            "whole_job_s": round(whole[name], 1),
            "whole_job_s_min_max": [round(min(totals), 1), round(max(totals), 1)],
            "peak_gb": round(max(run["peak_gb"] for run in runs[name]), 3),
            "kept": int(middle["kept"]),
        }
    row["times_faster"] = round(whole["library"] / whole["ours"], 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "vit-b"), default="demo")
    parser.add_argument("--picture", choices=("coins", "scene"), default="coins")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4])
    parser.add_argument("--points", type=int, default=16, help="points along a side that are decoded")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="0: one for each core")
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    options.threads = options.threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = ROOT / "models" / "sam-demo" if options.model == "demo" else vit_b(folder / "vit-b")
        rows = []
        for megapixels in options.megapixels:
            rows.append(measure(checkpoint, folder, megapixels, options))
            print(json.dumps(rows[-1]), flush=True)
    remember(options, rows)


def remember(options: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    """Keep the rows under their command in results/core.json, beside those of other commands."""
    path = RESULTS / "core.json"
    entries: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    command = "python -m benchmarks.core " + " ".join(sys.argv[1:])
    entries[command] = {"machine": describe(), "options": vars(options), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
