"""Measure the cost of a mask after the decoder, at 1 to 100 MP: the library's full-size approach and the scanline.

``python -m benchmarks.masks``: both alternate on the same synthetic logits, in one thread; medians of CPU time per
mask.  The masks have the sizes of SA-1B's and smooth outlines.  Up to 18 MP stability, box and RLE are compared too.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate
from transformers.models.sam.image_processing_sam import _batched_mask_to_box, _compute_stability_score, _mask_to_rle

from benchmarks.machine import keep
from maskfleet.worker.masks import mask as masks
from maskfleet.worker.masks.measure import keep_logits_window, measure, stability, trace
from maskfleet.worker.masks.resampling import BilinearMap, two_steps
from maskfleet.worker.masks.rle import encode_rle

LOW, INPUT = 256, 1024
#: An aspect ratio of 3 : 2, as in most cameras.
SIZES_HW = {
    "1 MP": (816, 1224),
    "4 MP": (1632, 2448),
    "12 MP": (2828, 4242),
    "18 MP": (3456, 5184),
    "100 MP": (8165, 12247),
}
#: The library's approach would take 400 MB and more per mask.
LARGEST_FOR_LIBRARY = 20_000_000

Floats = npt.NDArray[np.float32]


def scaled(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the size of an image in SAM's input."""
    scale = INPUT / max(size_hw)
    return int(size_hw[0] * scale + 0.5), int(size_hw[1] * scale + 0.5)


def plant(count: int, aspect: float, seed: int = 0) -> Floats:
    """Return logits of blobs: radii of 1.5 to 30 % of the width, wavy outlines, slopes of 0.7 to 3 per pixel."""
    random = np.random.default_rng(seed)
    y, x = np.meshgrid(*[(np.arange(LOW) + 0.5) / LOW] * 2, indexing="ij")
    planted = np.empty((count, LOW, LOW), np.float32)
    for mask in planted:
        across, down = random.uniform(0, 1), random.uniform(0, aspect)
        angle = np.arctan2(y - down, x - across)
        waves = sum(random.normal(0, 0.12 / n) * np.cos(n * angle + random.uniform(0, 2 * np.pi)) for n in range(2, 9))
        radius = np.exp(random.uniform(np.log(0.015), np.log(0.3))) * (1 + waves)
        inward = (radius - np.hypot(x - across, (y - down) * random.uniform(0.7, 1.4))) * LOW
        slope = (inward + random.normal(0, 0.25)) * random.uniform(0.7, 3)
        mask[:] = np.where(slope > 0, 9 * np.tanh(slope / 9), 14 * np.tanh(slope / 14)) + random.normal(0, 0.05)
    return planted


def library_way(logits: Floats, size_hw: tuple[int, int]) -> list[tuple[Any, ...]]:
    """Return stability, box and run lengths of a prompt's three masks: post_process_masks, then filter_masks."""
    height, width = scaled(size_hw)
    large = interpolate(torch.from_numpy(logits)[None], (INPUT, INPUT), mode="bilinear", align_corners=False)
    full = interpolate(large[..., :height, :width], size_hw, mode="bilinear", align_corners=False)[0]
    stability = _compute_stability_score(full, 0.0, 1.0)
    inside = full > 0.0
    boxes = _batched_mask_to_box(inside)
    counts = [rle["counts"] for rle in _mask_to_rle(inside)]
    return list(zip(stability.tolist(), boxes.int().tolist(), counts, strict=True))


def our_way(
    logits: Floats, bilinear_map: BilinearMap, size_hw: tuple[int, int], seconds: dict[str, list[float]]
) -> list[tuple[Any, ...]]:
    """Return the same from the scanline, with the runs as text."""
    started = time.thread_time()
    measures = measure(logits, bilinear_map, 0.0, 1.0)
    scores = stability(measures)
    measured = time.thread_time()
    logits_windows = [
        keep_logits_window(one, window, bilinear_map) for one, window in zip(logits, measures.windows, strict=True)
    ]
    changes = [trace(logits_window, bilinear_map, 0.0, size_hw[0]) for logits_window in logits_windows]
    texts = [encode_rle(one, size_hw) for one in changes]
    written = time.thread_time()
    seconds["measure"].append((measured - started) / len(logits))
    seconds["write"].append((written - measured) / len(logits))
    last_pixels = np.maximum(measures.boxes_xyxy - [0, 0, 1, 1], 0).tolist()
    lengths = [run_lengths(one.tolist(), size_hw) for one in changes]
    del texts
    return list(zip(scores.tolist(), last_pixels, lengths, strict=True))


def run_lengths(changes: list[int], size_hw: tuple[int, int]) -> list[int]:
    """Return COCO's run lengths, given where runs begin."""
    pixels = size_hw[0] * size_hw[1]
    ends = changes if changes and changes[-1] == pixels else [*changes, pixels]
    return np.diff(ends, prepend=0).tolist()


def compare(size_hw: tuple[int, int], prompts: int) -> dict[str, object]:
    """Alternate between both, prompt by prompt."""
    logits = plant(3 * prompts, size_hw[0] / size_hw[1])
    bilinear_map = two_steps((LOW, LOW), (INPUT, INPUT), scaled(size_hw), size_hw)
    seconds: dict[str, list[float]] = {"library": [], "measure": [], "write": []}
    unequal = 0
    with_library = size_hw[0] * size_hw[1] < LARGEST_FOR_LIBRARY
    for three in logits.reshape(prompts, 3, LOW, LOW):
        ours = our_way(three, bilinear_map, size_hw, seconds)
        if with_library:
            started = time.thread_time()
            theirs = library_way(three, size_hw)
            seconds["library"].append((time.thread_time() - started) / 3)
            unequal += sum(one != other for one, other in zip(ours, theirs, strict=True))
            del theirs
            gc.collect()
    milliseconds = {name: round(statistics.median(values) * 1000, 3) for name, values in seconds.items() if values}
    ours_ms = milliseconds["measure"] + milliseconds["write"]
    figures: dict[str, object] = {"masks": 3 * prompts, "ms_per_mask": milliseconds}
    if with_library:
        figures |= {"times_faster": round(milliseconds["library"] / ours_ms, 1), "unequal": unequal}
    return figures


def main() -> None:
    """Measure every size and store the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20, help="of three masks each, for each size")
    prompts = parser.parse_args().prompts
    torch.set_num_threads(1)
    masks.warm_up()
    figures: dict[str, object] = {}
    # Largest first without the library, so that the process' peak is our own.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["100 MP"] = compare(SIZES_HW["100 MP"], prompts)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for name in ("1 MP", "4 MP", "12 MP", "18 MP"):
        figures[name] = compare(SIZES_HW[name], prompts)
    keep(
        "masks",
        f"python -m benchmarks.masks --prompts {prompts}",
        {"threads": 1, "peak_growth_at_100_mp_mb": round(grown_mb), "sizes": figures},
    )


if __name__ == "__main__":
    main()
