"""Measure queue overhead: the time of a job from POST to its end, minus that of the same segmentation in process.

    python -m benchmarks.overhead

The local stack runs on this machine with one worker.  Jobs are sent one at a time and awaited with
``Prefer: wait``.  The same photograph, with the same parameters and outputs, is segmented in this process, alternating
with the jobs; torch has the same number of threads on both sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import torch

from benchmarks.machine import ROOT, keep, spread
from maskfleet import Client
from maskfleet.jobs.schema.spec import parse_spec
from maskfleet.worker.image.decode import decode_photo
from maskfleet.worker.output.formats import make_artifacts
from maskfleet.worker.sam.model import load_model
from maskfleet.worker.segment import segment

MODEL = ROOT / "models" / "sam-demo"
PHOTO = ROOT / "examples" / "coins.png"
RUNS = 9
JOBS: dict[str, dict[str, object]] = {
    "box": {"mode": "box", "prompts": [{"box": [20, 20, 80, 80]}]},
    "everything, 16 × 16 points": {"mode": "everything", "params": {"points_per_crop": 16}},
}


def main() -> None:
    torch.set_num_threads(1)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MASKFLEET_TORCH_THREADS": "1",
        "MASKFLEET_LOG_LEVEL": "WARNING",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "maskfleet", "up", "--json", "--data", folder, "--model", str(MODEL)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as stack:
            try:
                assert stack.stdout is not None
                ready = json.loads(stack.stdout.readline())
                client = Client(ready["api_url"], ready["api_key"])
                figures = {name: measure(client, fields) for name, fields in JOBS.items()}
            finally:
                stack.terminate()
    keep("overhead", "python -m benchmarks.overhead", figures)


def measure(client: Client, fields: dict[str, object]) -> dict[str, object]:
    """Measure a job through the service and in process, alternating."""
    photo_bytes = PHOTO.read_bytes()
    model = load_model(str(MODEL), "cpu")
    upload_id = client.upload(photo_bytes)
    spec = parse_spec(json.dumps(fields | {"image": {"upload_id": upload_id}}))
    through_s, in_process_s, overhead_s = [], [], []
    for run in range(RUNS + 2):
        started = time.perf_counter()
        job = client.wait(client.submit(spec).id)
        served = time.perf_counter() - started
        assert job.status == "succeeded", job.error

        started = time.perf_counter()
        photo = decode_photo(photo_bytes, 10**8)
        for _ in make_artifacts(photo, spec, segment(photo, spec, model)):
            pass
        local = time.perf_counter() - started

        if run >= 2:  # the first two are warm-up
            through_s.append(served)
            in_process_s.append(local)
            overhead_s.append(served - local)
    return {
        "through the service, s": spread(through_s),
        "in process, s": spread(in_process_s),
        "overhead, s": spread(overhead_s),
        "runs": RUNS,
    }


if __name__ == "__main__":
    main()
