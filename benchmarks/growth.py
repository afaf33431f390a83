"""Measure how time and memory of mode everything grow with points and megapixels.

    python -m benchmarks.growth

Ours alone, one thread: points from 16² to 64² on an image of 1 MP, and images from 1 to 100 MP at 16² points, with the
bundled checkpoint; memory at 1 to 100 MP also with a checkpoint of ViT-B's shape.  Draws docs/pictures/growth.png.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.core import Side, picture, vit_b
from benchmarks.machine import ROOT, keep

SIDES = (16, 24, 32, 48, 64)
MEGAPIXELS = (1, 4, 12, 18, 100)
RUNS = 3
INK, FIRST, SECOND = "#333333", "#2a6f97", "#bc4749"


def over_points(checkpoint: Path, folder: Path) -> list[dict[str, float]]:
    np.save(folder / "image.npy", picture("coins", 1))
    side = Side("ours", checkpoint, folder / "image.npy", 64, 1, "default")
    side.run(SIDES[0])  # warm-up
    rows = []
    for points in SIDES:
        runs = [side.run(points) for _ in range(RUNS)]
        seconds = statistics.median(run["encode_s"] + run["decode_s"] for run in runs)
        rows.append({"points": points**2, "seconds": round(seconds, 2)})
    side.close()
    return rows


def over_megapixels(checkpoint: Path, folder: Path, points: int, runs: int, batch: int) -> list[dict[str, float]]:
    rows = []
    for megapixels in MEGAPIXELS:
        np.save(folder / "image.npy", picture("coins", megapixels))
        side = Side("ours", checkpoint, folder / "image.npy", batch, 1, "default")
        measured = [side.run(points) for _ in range(runs)]
        side.close()
        seconds = statistics.median(run["encode_s"] + run["decode_s"] for run in measured)
        peaks = {key: round(max(run[key] for run in measured), 3) for key in ("peak_gb", "process_gb")}
        rows.append({"megapixels": megapixels, "seconds": round(seconds, 2)} | peaks)
    return rows


def draw(points: list[dict[str, float]], megapixels: list[dict[str, float]], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot([row["points"] for row in points], [row["seconds"] for row in points], "o-", color=FIRST)
    left.set(xlabel="points", ylabel="seconds", title="time against points, 1 MP")
    right.plot([row["megapixels"] for row in megapixels], [row["seconds"] for row in megapixels], "o-", color=FIRST)
    right.set(xlabel="megapixels", ylabel="seconds", title="time and memory against megapixels, 256 points")
    memory = right.twinx()
    memory.plot([row["megapixels"] for row in megapixels], [row["peak_gb"] for row in megapixels], "s--", color=SECOND)
    memory.set_ylabel("peak over weights and image, GB", color=SECOND)
    for axes in (left, right, memory):
        axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # headroom, or the markers of a flat line would lie on the frame
        axes.set_xlim(left=0)
        axes.tick_params(colors=INK)
        axes.spines["top"].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    demo = ROOT / "models" / "sam-demo"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            "sam-demo, seconds against points": over_points(demo, folder),
            "sam-demo, 256 points, against megapixels": over_megapixels(demo, folder, 16, RUNS, 64),
            "ViT-B's shape, 64 points, 128 a batch, against megapixels": over_megapixels(
                vit_b(folder / "vit-b"), folder, 8, 1, 128
            ),
        }
    points, megapixels, _ = figures.values()
    draw(points, megapixels, ROOT / "docs" / "pictures" / "growth.png")
    keep("growth", "python -m benchmarks.growth", figures)


if __name__ == "__main__":
    main()
