"""One side of `benchmarks.core`, in its own process: ours, or the library's.

It loads a checkpoint, segments a small blank image as a warm-up, loads the image and, for each number of points
per side read from standard input (perhaps with another size of batch and another image), writes a line of JSON:
seconds of wall clock and of CPU, the peak of resident memory above what the process held with the model and the image
loaded, and that of the whole process since its start, with all that Python and torch need.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskfleet.jobs.schema.spec import EverythingJob, ImageSource
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.memory import give_back

#: Noise is never stable: keep the stability filter in, and let everything pass it.
STABILITY = 0.001
SOMEWHERE = ImageSource(s3_uri="s3://bench/any.png")

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
        from maskfleet.worker.sam.model import load_model

        self._model = load_model(checkpoint, device)
        self.points_per_batch = points_per_batch

    def run(self, pixels: Pixels, side: int) -> dict[str, float]:
        from maskfleet.worker.segment import segment

        photo = Photo(pixels, (pixels.shape[1], pixels.shape[0]), "PNG")
        params = {
            "points_per_crop": side,
            "points_per_batch": self.points_per_batch,
            "stability_score_thresh": STABILITY,
        }
        spec = EverythingJob(mode="everything", image=SOMEWHERE, params=params)
        started = time.perf_counter()
        result = segment(photo, spec, self._model)
        whole_s = time.perf_counter() - started
        encode_s = result.metrics.embed_s
        return {"encode_s": encode_s, "decode_s": whole_s - encode_s, "kept": len(result.masks)}


class Library:
    """The steps of transformers' mask-generation pipeline, in its order."""

    def __init__(self, checkpoint: str, points_per_batch: int, device: str) -> None:
        from transformers import AutoConfig, Sam2ImageProcessor, Sam2Model, SamImageProcessor, SamModel

        is_sam = AutoConfig.from_pretrained(checkpoint).model_type == "sam"
        network, processor = (SamModel, SamImageProcessor) if is_sam else (Sam2Model, Sam2ImageProcessor)
        self._network: Any = network.from_pretrained(checkpoint, dtype=torch.float32).to(device).eval()
        self._processor: Any = processor.from_pretrained(checkpoint)
        self.points_per_batch = points_per_batch

    @torch.inference_mode()
    def run(self, pixels: Pixels, side: int) -> dict[str, float]:
        processor = self._processor
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        target = processor.size.get("longest_edge") or processor.size["height"]
        boxes, points, crops, labels = processor.generate_crop_boxes(image, target, 0, 512 / 1500, side, 1)
        inputs = processor(images=crops, return_tensors="pt")
        device = self._network.device
        points, labels, boxes = (values.to(device) for values in (points, labels, boxes))
        started = time.perf_counter()
        embeddings = self._network.get_image_embeddings(inputs["pixel_values"].to(device))
        encode_s = time.perf_counter() - started
        size = inputs["original_sizes"].tolist()
        sizes = [size, inputs["reshaped_input_sizes"].tolist()] if "reshaped_input_sizes" in inputs else [size]
        masks, scores, found_boxes = [], [], []
        started = time.perf_counter()
        for start in range(0, points.shape[1], self.points_per_batch):
            batch = slice(start, start + self.points_per_batch)
            output = self._network(
                input_points=points[:, batch, 0:1], input_labels=labels[:, batch, 0:1], image_embeddings=embeddings
            )
            full = processor.post_process_masks(output.pred_masks, *sizes, mask_threshold=0, binarize=False)
            kept = processor.filter_masks(full[0], output.iou_scores[0], size[0], boxes[0], 0.88, STABILITY, 0, 1)
            masks.extend(kept[0])
            scores.append(kept[1])
            found_boxes.append(kept[2])
        kept_masks, *_ = processor.post_process_for_mask_generation(
            masks, torch.cat(scores), torch.cat(found_boxes), 0.7
        )
        return {"encode_s": encode_s, "decode_s": time.perf_counter() - started, "kept": len(kept_masks)}


class Decoder:
    """A decoder alone, on a grid of points: ours makes the low-resolution masks that pass, the library's makes all.

    An image is encoded once, which is not counted.
    """

    def __init__(self, checkpoint: str, points_per_batch: int, device: str, *, ours: bool) -> None:
        from maskfleet.worker.sam.families.sam import LibrarySam, Sam
        from maskfleet.worker.sam.families.sam2 import LibrarySam2
        from maskfleet.worker.sam.model import batch_that_fits, load_model

        model = load_model(checkpoint, device)
        self._family = model.family
        if not ours:
            through_library = LibrarySam if isinstance(model.family, Sam) else LibrarySam2
            self._family = through_library(model.family.network, model.family.preprocessing)
        self.points_per_batch = batch_that_fits(model, points_per_batch) if ours else points_per_batch
        self._embedded: tuple[Pixels, Any] | None = None

    def run(self, pixels: Pixels, side: int) -> dict[str, float]:
        from maskfleet.worker.masks.choice import choose_promising
        from maskfleet.worker.sam.crops import lay_out
        from maskfleet.worker.sam.prompts import grid_batches

        spec = EverythingJob(mode="everything", image=SOMEWHERE, params={"points_per_crop": side})
        [crop] = lay_out((pixels.shape[1], pixels.shape[0]), spec.params)
        if self._embedded is None or self._embedded[0] is not pixels:
            self._embedded = (pixels, self._family.embed(pixels))
        embedding, promising = self._embedded[1], 0
        started, started_cpu = time.perf_counter(), time.process_time()
        for batch in grid_batches(crop, embedding.frame, self.points_per_batch):
            candidates = self._family.decode(embedding, batch)
            chosen = choose_promising(candidates, spec.params.pred_iou_thresh)
            promising += len(candidates.logits(chosen.rows, chosen.columns))
        decode_s, decode_cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
        return {"encode_s": 0.0, "decode_s": decode_s, "decode_cpu_s": decode_cpu_s, "kept": promising}


SIDES: dict[str, Callable[[str, int, str], Ours | Library | Decoder]] = {
    "ours": Ours,
    "library": Library,
    "our-decoder": partial(Decoder, ours=True),
    "library-decoder": partial(Decoder, ours=False),
}


def main() -> None:
    side_name, checkpoint, image, points_per_batch, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    side = SIDES[side_name](checkpoint, int(points_per_batch), device)
    side.run(np.zeros((64, 64, 3), np.uint8), 2)  # weights are read, and code is compiled, on first use
    pixels = np.load(image)
    loaded_gb = resident_gb("VmHWM")
    print("ready", flush=True)
    for line in sys.stdin:
        points, *otherwise = line.split()
        if otherwise:
            side.points_per_batch, pixels = int(otherwise[0]), np.load(otherwise[1])
        give_back()  # or the run would refill it unnoticed
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before_gb, cpu_s = resident_gb("VmRSS"), time.process_time()
        answer = side.run(pixels, int(points))
        peak_gb = resident_gb("VmHWM")
        answer |= {"cpu_s": time.process_time() - cpu_s, "peak_gb": peak_gb - before_gb}
        answer |= {"process_gb": max(loaded_gb, peak_gb)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
