"""Compare mode everything with transformers' pipeline.

    python -m benchmarks.core --model demo --megapixels 1 4
    python -m benchmarks.core --model demo --megapixels 1 --picture scene
    python -m benchmarks.core --model vit-b --megapixels 1 18 --points 4 --runs 3
    python -m benchmarks.core --model demo --megapixels 1 --allocator tuned
    python -m benchmarks.core --model demo --megapixels 1 --threads 2
    python -m benchmarks.core --model sam2 --megapixels 1 --points 8 --stage decoder

Each side runs in its own process, and after a warm-up the two alternate: library, ours, library, ours.  The
figures are medians.  ``coins`` is a photograph, where one candidate in fourteen passes the filters; ``scene`` is drawn
so that nearly all pass, the worst case for an implementation that saves work on those that do not.  A whole
job of 1,024 points is extrapolated from the encoder and ``points``² decoded points: decoding is linear in points
(see `benchmarks.growth`).  ``vit-b`` has ViT-B's shape and random weights, whose masks are noise; one in
eight passes the IoU filter, as with trained weights.  ``sam2`` is the same with SAM 2's shape and the encoder
``--hiera``, on a square image: on any other the library's grid does not cover it.  ``tuned`` keeps freed memory,
by glibc's MALLOC_ settings.  Stage ``decoder`` leaves out the encoder and what follows: the library's modules give the
low-resolution masks of all candidates, ours those of candidates that pass the IoU filter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Sam2ImageProcessor, SamImageProcessor

from benchmarks.machine import RESULTS, ROOT, describe
from tests.scenes import plain_scene

WHOLE = 32 * 32
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
#: The classes for the library's side and ours, by stage.
SIDES = {"whole": ("library", "ours"), "decoder": ("library-decoder", "our-decoder")}
#: The encoders of SAM 2 and 2.1, as in their checkpoints' config.json.
HIERA: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 96,
        "blocks_per_stage": [1, 2, 7, 2],
        "embed_dim_per_stage": [96, 192, 384, 768],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "global_attention_blocks": [5, 7, 9],
    },
    "small": {
        "hidden_size": 96,
        "blocks_per_stage": [1, 2, 11, 2],
        "embed_dim_per_stage": [96, 192, 384, 768],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "global_attention_blocks": [7, 10, 13],
    },
    "base-plus": {
        "hidden_size": 112,
        "blocks_per_stage": [2, 3, 16, 3],
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "large": {
        "hidden_size": 144,
        "blocks_per_stage": [2, 6, 36, 4],
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [23, 33, 43],
        "window_size_per_stage": [8, 4, 16, 8],
    },
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

    def run(self, points: int, *otherwise: object) -> dict[str, float]:
        """Segment the image once.

        otherwise: another size of batch and another image, from now on; their names contain no space.
        """
        assert self._process.stdin is not None
        print(points, *otherwise, file=self._process.stdin)
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._read())
        return answer

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def picture(name: str, megapixels: float, *, square: bool = False) -> np.ndarray[Any, Any]:
    """Return the example photograph of coins, or a drawn scene, at that many megapixels; square: its left part."""
    if name == "coins":
        small = Image.open(ROOT / "examples" / "coins.png").convert("RGB")
    else:
        small = Image.fromarray(plain_scene(1).pixels)
    if square:
        small = small.crop((0, 0, min(small.size), min(small.size)))
    scale = (megapixels * 1e6 / (small.width * small.height)) ** 0.5
    return np.asarray(small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BICUBIC))


def vit_b(folder: Path, **otherwise: Any) -> Path:
    """Save a checkpoint of ViT-B's shape with random weights that keeps masks.

    otherwise: what differs from its encoder's configuration.
    """
    from tests.worker.networks import random_sam

    shape: dict[str, Any] = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "global_attn_indexes": [2, 5, 8, 11], "window_size": 14,
    }  # fmt: skip
    network = random_sam(256, 8, 64, **{**shape, **otherwise})
    return _save_with_masks(folder, network, SamImageProcessor(), picture("coins", 1))


def vit_h(folder: Path) -> Path:
    """Save a checkpoint of ViT-H's shape with random weights that keeps masks; 2.6 GB."""
    from tests.worker.networks import random_sam

    network = random_sam(
        256, 8, 64, hidden_size=1280, num_hidden_layers=32, num_attention_heads=16,
        global_attn_indexes=[7, 15, 23, 31], window_size=14,
    )  # fmt: skip
    return _save_with_masks(folder, network, SamImageProcessor(), picture("coins", 1))


def sam2(folder: Path, hiera: str = "tiny", **otherwise: Any) -> Path:
    """Save a checkpoint of SAM 2's shape with random weights that keeps masks.

    hiera: which encoder; otherwise: what differs from its configuration.
    """
    from tests.worker.networks import random_sam2

    network = random_sam2(256, 8, 64, **{**HIERA[hiera], **otherwise})
    return _save_with_masks(folder, network, Sam2ImageProcessor(), picture("coins", 1, square=True))


def _save_with_masks(folder: Path, network: Any, processor: Any, pixels: np.ndarray[Any, Any]) -> Path:
    """Shift the IoU head so that one candidate in eight passes at 0.88, and make logits as large as trained ones."""
    for tower in network.mask_decoder.output_hypernetworks_mlps:
        tower.proj_out.weight *= 10
        tower.proj_out.bias *= 10
    inputs = processor(images=pixels, return_tensors="pt")
    steps = torch.arange(64.0, 1024, 128)
    grid = torch.cartesian_prod(steps, steps)[None, :, None]
    with torch.inference_mode():
        embedding = network.get_image_embeddings(inputs["pixel_values"])
        least = network(input_points=grid, image_embeddings=embedding).iou_scores.quantile(7 / 8)
    passing, head = torch.tensor(0.88), network.mask_decoder.iou_prediction_head
    head.proj_out.bias += passing.logit() - least.logit() if head.sigmoid_output else passing - least
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def measure(checkpoint: Path, folder: Path, megapixels: float, options: argparse.Namespace) -> dict[str, object]:
    image = folder / "image.npy"
    np.save(image, picture(options.picture, megapixels, square=options.model == "sam2"))
    batch = 16 if megapixels >= SMALL_BATCH_FROM_MP else 64
    names = ("library", "ours")
    sides = {
        name: Side(side, checkpoint, image, batch, options.threads, options.allocator, options.device)
        for name, side in zip(names, SIDES[options.stage], strict=True)
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for side in sides.values():
        side.run(2)  # code needed only by masks that are kept
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
            **{
                f"{key}_per_64_points": round(middle[key] * 64 / options.points**2, 3)
                for key in ("decode_s", "decode_cpu_s")
                if key in middle
            },
            "whole_job_s": round(whole[name], 1),
            "whole_job_s_min_max": [round(min(totals), 1), round(max(totals), 1)],
            "peak_gb": round(max(run["peak_gb"] for run in runs[name]), 3),
            "kept": int(middle["kept"]),
        }
    row["times_faster"] = round(whole["library"] / whole["ours"], 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "vit-b", "sam2"), default="demo")
    parser.add_argument("--hiera", choices=tuple(HIERA), default="tiny", help="the encoder of model sam2")
    parser.add_argument("--picture", choices=("coins", "scene"), default="coins")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4])
    parser.add_argument("--points", type=int, default=16, help="points along a side that are decoded")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="0: one for each core")
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default")
    parser.add_argument("--stage", choices=tuple(SIDES), default="whole")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    options.threads = options.threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {"vit-b": vit_b, "sam2": partial(sam2, hiera=options.hiera)}
        demo = ROOT / "models" / "sam-demo"
        checkpoint = demo if options.model == "demo" else made[options.model](folder / options.model)
        rows = []
        for megapixels in options.megapixels:
            rows.append(measure(checkpoint, folder, megapixels, options))
            print(json.dumps(rows[-1]), flush=True)
    remember(options, rows)


def remember(options: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    """Store the rows under their command in results/core.json, with those of other commands."""
    path = RESULTS / "core.json"
    entries: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    command = "python -m benchmarks.core " + " ".join(sys.argv[1:])
    entries[command] = {"machine": describe(), "options": vars(options), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
