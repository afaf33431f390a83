"""``python -m tests.faults.stand_in``: a worker node without a model, which starts in a second and may die often.

All of it is the worker's own code, save the step from an image to masks: that takes its time and gives masks which
follow from the image and the spec alone.  So torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from jobs.record import Metrics, Spec
from jobs.spec import EverythingJob
from jobs.status import Stage
from tests.faults.promises import DEVICE_LOST, HUNG

#: What its jobs name, and how long a batch of points takes.
MODEL = "stand-in"
BATCH_S = 0.02


@dataclass(frozen=True, slots=True)
class Mask:
    area: int
    bbox_xywh: tuple[float, float, float, float]
    predicted_iou: float
    stability_score: float
    prompt: int | None
    candidate: int | None = None


@dataclass(frozen=True, slots=True)
class Segmentation:
    masks: tuple[Mask, ...]
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Artifact:
    name: str
    content_type: str
    data: bytes


def segment(photo: Any, spec: Spec, model: object, watch: Any, mask_inputs: object) -> Segmentation:
    """Take a while for each prompt, or for each point of the grid; report as the real one does."""
    kind = spec.metadata.get("kind")
    watch.stage(Stage.EMBEDDING)
    if kind == HUNG:
        time.sleep(3600)  # as a native call does: other threads go on, and nothing is looked at
    if kind == DEVICE_LOST or _lost:
        _lost.append(True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    time.sleep(BATCH_S)
    watch.stage(Stage.DECODING)
    grid = isinstance(spec, EverythingJob)
    total = spec.params.points_per_crop**2 if isinstance(spec, EverythingJob) else len(spec.prompts)
    masks = []
    for number in range(total):
        watch.batch(number, total, len(masks))
        time.sleep(BATCH_S)
        prompts = "" if grid else spec.prompts[number].model_dump_json()
        digest = hashlib.sha256(photo.pixels.tobytes() + f"{number} {prompts}".encode()).digest()
        masks.append(Mask(digest[0], (digest[1], digest[2], 9, 9), digest[3] / 255, 1.0, None if grid else number))
    watch.batch(total, total, len(masks))
    return Segmentation(tuple(masks), Metrics(points=total, points_per_batch=1))


#: Not empty once this process has lost its device, and with it every further call.
_lost: list[bool] = []


def make_artifacts(photo: object, spec: Spec, segmentation: Segmentation) -> Iterator[Artifact]:
    records = [asdict(mask) for mask in segmentation.masks]
    yield Artifact("coco.json", "application/json", json.dumps({"annotations": records}).encode())


def _stand_in_for(name: str, **things: object) -> None:
    module = ModuleType(name)
    vars(module).update(things)
    sys.modules[name] = module


# At the import, so that a child that is spawned, which imports this module anew, has them, too.
_stand_in_for("worker.segment", segment=segment, Segmentation=Segmentation)
_stand_in_for("worker.model", SegmentationModel=object, load_model=lambda *_: object())
_stand_in_for("worker.formats", make_artifacts=make_artifacts)
_stand_in_for("worker.masks", warm_up=lambda: None)
_stand_in_for("torch", set_num_threads=lambda _: None)
_stand_in_for("worker.prompts", MaskInputs=dict, NO_MASKS={})

if __name__ == "__main__":
    from worker.app import main

    main()
