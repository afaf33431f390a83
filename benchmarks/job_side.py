"""One side of `benchmarks.job`, in its own process: ours, or transformers' pipeline with Pillow.

It loads a checkpoint and then does a job for each line of JSON on standard input: the key of an image in the store and
how many points the grid has along a side.  It answers with the seconds that each stage took.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.core import SMALL_BATCH_FROM_MP
from maskfleet.jobs.schema.spec import EverythingJob, ImageSource, Output, OverlayFormat
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store

MAX_PIXELS = 10**8
SOMEWHERE = ImageSource(s3_uri="s3://bench/any.jpg")
Answer = dict[str, Any]


class Clock:
    """Seconds by stage, in the order in which they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class TimedFamily:
    """A family of models whose encoder and decoder are timed."""

    def __init__(self, family: Any, clock: Clock) -> None:
        self._family, self._clock = family, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def embed(self, pixels: Any) -> Any:
        with self._clock.stage("embed"):
            return self._family.embed(pixels)

    def decode(self, *arguments: Any, **options: Any) -> Any:
        return self._timed(self._family.decode, arguments, options)

    def decode_in_slot(self, *arguments: Any, **options: Any) -> Any:
        return self._timed(self._family.decode_in_slot, arguments, options)

    def _timed(self, decode: Any, arguments: Any, options: Any) -> Any:
        with self._clock.stage("decode prompts"):
            candidates = decode(*arguments, **options)

        def logits(rows: Any, columns: Any) -> Any:
            # Only the masks that are measured are computed, when they are.
            with self._clock.stage("decode prompts"):
                return candidates.logits(rows, columns)

        return replace(candidates, logits=logits)


class Ours:
    """The steps of a worker's attempt."""

    def __init__(self, checkpoint: str, store: Store) -> None:
        from maskfleet.worker.image.sandbox import Sandbox
        from maskfleet.worker.sam.model import load_model

        self._store, self._sandbox = store, Sandbox()
        self._model = load_model(checkpoint, "cpu")

    def run(self, key: str, points: int) -> Answer:
        from maskfleet.worker.output.formats import coco_json, label_map_png, mask_files, overlay_file
        from maskfleet.worker.output.overlay import draw_overlay
        from maskfleet.worker.segment import segment

        clock, started = Clock(), time.perf_counter()
        with clock.stage("fetch"):
            data = self._store.read(key)
        with clock.stage("decode the file"):
            photo = self._sandbox.decode(data, MAX_PIXELS)
        spec = EverythingJob(mode="everything", image=SOMEWHERE, params={"points_per_crop": points})
        model = replace(self._model, family=TimedFamily(self._model.family, clock))
        segmenting = time.perf_counter()
        found = segment(photo, spec, model)
        clock.seconds["measure"] = (
            time.perf_counter() - segmenting - sum(clock.seconds[name] for name in ("embed", "decode prompts"))
        )
        files = {}
        with clock.stage("coco"):
            files["coco.json"] = coco_json(found, "any.jpg")
        with clock.stage("png"):
            files |= {file.name: file.data for file in mask_files(found, {Output.PNG})}
        with clock.stage("label_map"):
            files["label_map.png"] = label_map_png(found)
        with clock.stage("overlay"):
            overlay = overlay_file(draw_overlay(photo, spec, found.masks), OverlayFormat.PNG)
            files[overlay.name] = overlay.data
        _upload(self._store, files, clock)
        whole_s = time.perf_counter() - started
        with clock.stage("(masks_zip, instead of png)"):
            list(mask_files(found, {Output.MASKS_ZIP}))
        return _answer(clock, whole_s, len(found.masks), files)


class Library:
    """transformers' pipeline, and Pillow, NumPy and pycocotools for the outputs.

    Decoding is linear in points: it decodes ``batches`` of the grid's batches, evenly spaced, and its time is
    multiplied.  Its outputs are made of the masks that our side finds in the same image, which are the same.
    """

    def __init__(self, checkpoint: str, store: Store, batches: int) -> None:
        from transformers import pipeline

        self._store, self._checkpoint, self._batches = store, checkpoint, batches
        self._pipeline = pipeline("mask-generation", model=checkpoint, device="cpu")
        self._masks: dict[str, tuple[list[Any], list[float]]] = {}

    def run(self, key: str, points: int) -> Answer:
        from PIL import Image

        masks, scores = self._known_masks(key, points)
        clock, started = Clock(), time.perf_counter()
        with clock.stage("fetch"):
            data = self._store.read(key)
        with clock.stage("decode the file"):
            photo = Image.open(io.BytesIO(data)).convert("RGB")
        extrapolated_s = self._segment(photo, points, clock)
        files = {}
        with clock.stage("coco"):
            files["coco.json"] = _coco(masks, scores)
        with clock.stage("png"):
            files |= {f"masks/{number:04}.png": _png(mask) for number, mask in enumerate(masks)}
        with clock.stage("label_map"):
            labels = np.zeros(masks[0].shape, np.uint16)
            for number, mask in sorted(enumerate(masks, 1), key=lambda pair: -np.count_nonzero(pair[1])):
                labels[mask] = number
            files["label_map.png"] = _png(labels)
        with clock.stage("overlay"):
            from tests.worker import overlay_reference

            files["overlay.png"] = _png(overlay_reference.overlay(np.asarray(photo), masks))
        _upload(self._store, files, clock)
        return _answer(clock, time.perf_counter() - started + extrapolated_s, len(masks), files)

    def _segment(self, photo: Any, points: int, clock: Clock) -> float:
        """Embed, decode and measure; return the seconds of the batches that were left out."""
        pipeline, megapixels = self._pipeline, photo.width * photo.height / 1e6
        batch = 16 if megapixels >= SMALL_BATCH_FROM_MP else 64
        chunks, outputs, decode_s, total = None, [], 0.0, points**2 // batch
        chunks = pipeline.preprocess(photo, points_per_batch=batch, points_per_crop=points)
        every = max(1, total // self._batches) if self._batches else 1
        number = 0
        while True:
            with clock.stage("decode prompts and measure" if number else "embed"):
                chunk = next(chunks, None)
            if chunk is None:
                break
            if number % every == every // 2:
                started = time.perf_counter()
                outputs.append(pipeline.forward(chunk))
                decode_s += time.perf_counter() - started
            number += 1
        extrapolated_s = decode_s * (number / len(outputs) - 1)
        with clock.stage("decode prompts and measure"):
            if any(len(output["masks"]) for output in outputs):
                pipeline.postprocess(outputs)
        clock.seconds["decode prompts and measure"] += decode_s + extrapolated_s
        return extrapolated_s

    def _known_masks(self, key: str, points: int) -> tuple[list[Any], list[float]]:
        if key not in self._masks:
            from maskfleet.worker.image.decode import decode_photo
            from maskfleet.worker.masks.mask import decode_mask
            from maskfleet.worker.sam.model import load_model
            from maskfleet.worker.segment import segment

            spec = EverythingJob(mode="everything", image=SOMEWHERE, params={"points_per_crop": points})
            photo = decode_photo(self._store.read(key), MAX_PIXELS)
            found = segment(photo, spec, load_model(self._checkpoint, "cpu")).masks
            decoded = [np.ascontiguousarray(decode_mask(mask)) for mask in found]
            self._masks = {key: (decoded, [mask.predicted_iou for mask in found])}
        return self._masks[key]


def _coco(masks: list[Any], scores: list[float]) -> bytes:
    from pycocotools import mask as coco_mask

    annotations = []
    for number, (mask, score) in enumerate(zip(masks, scores, strict=True), 1):
        rle = coco_mask.encode(np.asfortranarray(mask))
        box, area = coco_mask.toBbox(rle).tolist(), int(coco_mask.area(rle))
        rle["counts"] = rle["counts"].decode("ascii")
        annotations.append({"id": number, "segmentation": rle, "bbox": box, "area": area, "score": score})
    return json.dumps({"annotations": annotations}).encode()


def _png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _upload(store: Store, files: dict[str, bytes], clock: Clock) -> None:
    with clock.stage("upload"):
        for name, data in files.items():
            store.put(f"results/{name}", data, "application/octet-stream")


def _answer(clock: Clock, whole_s: float, masks: int, files: dict[str, bytes]) -> Answer:
    sizes = {"png": sum(len(data) for name, data in files.items() if name.startswith("masks/"))}
    sizes |= {name: len(data) for name, data in files.items() if not name.startswith("masks/")}
    return {"stages": clock.seconds | {"whole job": whole_s}, "masks": masks, "bytes": sizes}


def main() -> None:
    side_name, checkpoint, batches = sys.argv[1:]
    torch.set_num_threads(1)
    store = Store(SharedSettings())
    side = Ours(checkpoint, store) if side_name == "ours" else Library(checkpoint, store, int(batches))
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(side.run(job["key"], job["points"])), flush=True)


if __name__ == "__main__":
    main()
