"""``python -m tests.faults.stand_in``: a worker node without a model, which starts within a second and may die often.

Everything is the worker's own code, except the step from an image to masks: that waits and returns masks which
depend on the image and the spec alone.  So torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

from maskfleet.jobs.schema.manifest import MaskSummary
from maskfleet.jobs.schema.record import Metrics, ModelSpec
from maskfleet.jobs.schema.spec import EmbedJob, EverythingJob
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.status import Stage
from maskfleet.worker.app import main, workbench_for
from maskfleet.worker.output.artifacts import Artifact, Segmented
from tests.faults.promises import DEVICE_LOST, HUNG

if TYPE_CHECKING:
    from maskfleet.worker.attempt import Workbench
    from maskfleet.worker.embeddings.job_image import JobImage
    from maskfleet.worker.sam.prompts import MaskInputs
    from maskfleet.worker.steps import Watch

#: How long a batch of points takes.
BATCH_S = 0.02
#: Not empty once this process has lost its device, so that every further call fails.
_lost: list[bool] = []


def segment(photo: JobImage, spec: ModelSpec, watch: Watch, mask_inputs: MaskInputs) -> Segmented:
    """Wait for each prompt, or for each point of the grid; report progress like the real one."""
    kind = spec.metadata.get("kind")
    watch.stage(Stage.EMBEDDING)
    if kind == HUNG:
        time.sleep(3600)  # like a native call: other threads run, and nothing is checked
    if kind == DEVICE_LOST or _lost:
        _lost.append(True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    time.sleep(BATCH_S)
    watch.stage(Stage.DECODING)
    if isinstance(spec, EmbedJob):
        return Segmented((), Metrics(), iter(()))
    prompts = () if isinstance(spec, EverythingJob) else spec.prompts
    total = spec.params.points_per_crop**2 if isinstance(spec, EverythingJob) else len(prompts)
    masks: list[MaskSummary] = []
    for number in range(total):
        watch.batch(number, total, len(masks))
        time.sleep(BATCH_S)
        prompt = prompts[number].model_dump_json() if prompts else ""
        masks.append(_mask(photo.pixels.tobytes() + f"{number} {prompt}".encode(), number if prompts else None))
    watch.batch(total, total, len(masks))
    records = [mask.model_dump() for mask in masks]
    coco = Artifact("coco.json", "application/json", json.dumps({"annotations": records}).encode())
    return Segmented(tuple(masks), Metrics(points=total, points_per_batch=1), iter([coco]))


def _mask(of: bytes, prompt: int | None) -> MaskSummary:
    digest = hashlib.sha256(of).digest()
    return MaskSummary(
        area=digest[0],
        bbox=(digest[1], digest[2], 9, 9),
        predicted_iou=digest[3] / 255,
        stability_score=1.0,
        prompt=prompt,
    )


def make_workbench(settings: WorkerSettings) -> Workbench:
    return workbench_for(segment, settings)


if __name__ == "__main__":
    main(make_workbench)
