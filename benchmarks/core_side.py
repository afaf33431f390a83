"""One side of `benchmarks.core`, in a process of its own: ours, or the library's.

It loads a checkpoint, segments a small blank image as a warm-up, loads the image and answers each number of points
along a side on its standard input with a line of JSON: seconds of wall clock and of CPU, the peak of resident memory
above what the process held with the model and the image loaded, and that of the whole process since its start, with all
that Python and torch need.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.spec import EverythingJob, ImageSource
from worker.images import Photo

#: Noise is never stable: keep the test for stability in, and let everything pass it.
STABILITY = 0.001

Pixels = np.ndarray[Any, Any]


def resident_gb(field: str) -> float:
    """Read this process's ``VmRSS`` or ``VmHWM`` (its peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**20
    raise RuntimeError(f"no {field}")


class Ours:
    """`segment`, timed by its own metrics."""

    def __init__(self, checkpoint: str, points_per_batch: int, device: str) -> None:
        from worker.model import load_model

        self._model = load_model(checkpoint, device)
        self._points_per_batch = points_per_batch

    def run(self, pixels: Pixels, side: int) -> dict[str, float]:
        from worker.segment import segment

        photo = Photo(pixels, (pixels.shape[1], pixels.shape[0]), "PNG")
        params = {
            "points_per_crop": side,
            "points_per_batch": self._points_per_batch,
            "stability_score_thresh": STABILITY,
        }
        spec = EverythingJob(mode="everything", image=ImageSource(s3_uri="s3://bench/any.png"), params=params)
        started = time.perf_counter()
        result = segment(photo, spec, self._model)
        whole_s = time.perf_counter() - started
        encode_s = result.metrics.embed_s
        return {"encode_s": encode_s, "decode_s": whole_s - encode_s, "kept": len(result.masks)}


class Library:
    """The steps of transformers' mask-generation pipeline, in its order."""

    def __init__(self, checkpoint: str, points_per_batch: int, device: str) -> None:
        from transformers import SamImageProcessor, SamModel

        self._network: Any = SamModel.from_pretrained(checkpoint, dtype=torch.float32).to(device).eval()
        self._processor: Any = SamImageProcessor.from_pretrained(checkpoint)
        self._points_per_batch = points_per_batch

    @torch.inference_mode()
    def run(self, pixels: Pixels, side: int) -> dict[str, float]:
        processor = self._processor
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        target = processor.size["longest_edge"]
        boxes, points, crops, labels = processor.generate_crop_boxes(image, target, 0, 512 / 1500, side, 1)
        inputs = processor(images=crops, return_tensors="pt")
        device = self._network.device
        points, labels, boxes = (values.to(device) for values in (points, labels, boxes))
        started = time.perf_counter()
        embeddings = self._network.get_image_embeddings(inputs["pixel_values"].to(device))
        encode_s = time.perf_counter() - started
        size = inputs["original_sizes"].tolist()
        masks, scores, found_boxes = [], [], []
        started = time.perf_counter()
        for start in range(0, points.shape[1], self._points_per_batch):
            batch = slice(start, start + self._points_per_batch)
            output = self._network(
                input_points=points[:, batch, 0:1], input_labels=labels[:, batch, 0:1], image_embeddings=embeddings
            )
            full = processor.post_process_masks(
                output.pred_masks, size, inputs["reshaped_input_sizes"].tolist(), mask_threshold=0, binarize=False
            )
            kept = processor.filter_masks(full[0], output.iou_scores[0], size[0], boxes[0], 0.88, STABILITY, 0, 1)
            masks.extend(kept[0])
            scores.append(kept[1])
            found_boxes.append(kept[2])
        kept_masks, *_ = processor.post_process_for_mask_generation(
            masks, torch.cat(scores), torch.cat(found_boxes), 0.7
        )
        return {"encode_s": encode_s, "decode_s": time.perf_counter() - started, "kept": len(kept_masks)}


def main() -> None:
    side_name, checkpoint, image, points_per_batch, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    make: Callable[..., Ours | Library] = Ours if side_name == "ours" else Library
    side = make(checkpoint, int(points_per_batch), device)
    side.run(np.zeros((64, 64, 3), np.uint8), 2)  # weights are read, and code is compiled, at their first use
    pixels = np.load(image)
    loaded_gb = resident_gb("VmHWM")
    print("ready", flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before_gb, cpu_s = resident_gb("VmRSS"), time.process_time()
        answer = side.run(pixels, int(line))
        peak_gb = resident_gb("VmHWM")
        answer |= {"cpu_s": time.process_time() - cpu_s, "peak_gb": peak_gb - before_gb}
        answer |= {"process_gb": max(loaded_gb, peak_gb)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
