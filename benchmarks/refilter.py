"""Measure how long other thresholds take: filtering kept candidates again, beside a full run, through the service.

    python -m benchmarks.refilter
    python -m benchmarks.refilter --keep-all --megapixels 1 12

The local stack runs on this machine with the bundled model and one worker, and is idle but for this.  A job of 1,024
points keeps its candidates; then both sides take turns, ``POST …/refilter`` and a full job with the same thresholds,
each with ``Prefer: wait`` and output ``coco``, until the answer says that the job has ended.  Their masks are compared.
With ``--keep-all`` all 3,072 candidates are kept, as many as a model keeps at most; the full runs keep none.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from typing import Any

from PIL import Image

from benchmarks.clicks import DEMO, running_stack
from benchmarks.core import picture
from benchmarks.machine import keep
from maskfleet import Client, Job

#: Each turn has other thresholds.
TURNS = [{"pred_iou_thresh": iou, "crops_nms_thresh": nms} for iou, nms in ((0.82, 0.7), (0.85, 0.5), (0.9, 0.9))]


def ended(client: Client, job: Job) -> Job:
    """Wait for a job's end, if the answer came before it."""
    while not job.ended:
        job = client.get(job.id, held_s=60)
    assert job.status == "succeeded", job.error
    return job


def annotations(client: Client, job: Job) -> tuple[bytes, Any]:
    """Return a result's coco.json, and what it says of the masks."""
    [file] = [file for file in client.result(job.id).files if file.name == "coco.json"]
    data = client.read(file)
    return data, json.loads(data)["annotations"]


def measure(client: Client, megapixels: float, keep_all: bool, rounds: int) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(picture("coins", megapixels)).save(buffer, "PNG")
    image = {"upload_id": client.upload(buffer.getvalue())}
    floors = {"keep_pred_iou_thresh": 0.0, "keep_stability_score_thresh": 0.0} if keep_all else {}

    def run(**params: float) -> tuple[float, Job]:
        began = time.perf_counter()
        job = client.submit(mode="everything", image=image, params=params, outputs=["coco"], held_s=60)
        job = ended(client, job)
        return time.perf_counter() - began, job

    run()  # the image's embedding is then known, to all that follow
    keeping_s, kept = run(keep_candidates=True, **floors)
    [candidates] = [file for file in client.result(kept.id).files if file.name == "candidates.npz"]
    sides: dict[str, list[float]] = {"refilter": [], "full run": []}
    masks = []
    for thresholds in TURNS * rounds:
        began = time.perf_counter()
        again = ended(client, client.refilter(kept.id, ["coco"], held_s=60, **thresholds))  # type: ignore[arg-type]  # numbers, by name
        sides["refilter"].append(time.perf_counter() - began)
        full_s, full = run(**thresholds)
        sides["full run"].append(full_s)
        own, theirs = annotations(client, again)[1], annotations(client, full)[1]
        assert own == theirs, thresholds
        masks.append(len(own))
    return {
        "megapixels": megapixels,
        "candidates_file_bytes": candidates.size,
        "run_that_keeps_s": round(keeping_s, 3),
        "masks": sorted(set(masks)),
        "seconds": {
            side: {
                "median": round(statistics.median(times), 3),
                "least": round(min(times), 3),
                "most": round(max(times), 3),
            }
            for side, times in sides.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.0, 12.0])
    parser.add_argument("--keep-all", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with running_stack(DEMO, options.threads) as client:
        figures = [measure(client, size, options.keep_all, options.rounds) for size in options.megapixels]
    flag = " --keep-all" if options.keep_all else ""
    sizes = " ".join(f"{size:g}" for size in options.megapixels)
    command = f"python -m benchmarks.refilter{flag} --megapixels {sizes} --rounds {options.rounds}"
    keep("refilter_all" if options.keep_all else "refilter", command, figures)


if __name__ == "__main__":
    main()
