"""``python -m tests.worker.quick_fleet``: takes the options of ``maskfleet worker``; its nodes take 0.05 s for any job.

More workers than QUICK_FLEET_FITS do not start.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from maskfleet.jobs.schema.record import AnySpec, Metrics
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.app import main, workbench_for
from maskfleet.worker.node.fleet import run_fleet
from maskfleet.worker.output.artifacts import Segmented

if TYPE_CHECKING:
    from maskfleet.worker.attempt import Workbench
    from maskfleet.worker.embeddings.job_image import JobImage
    from maskfleet.worker.sam.prompts import MaskInputs
    from maskfleet.worker.steps import Watch


def segment(photo: JobImage, spec: AnySpec, watch: Watch, mask_inputs: MaskInputs) -> Segmented:
    time.sleep(0.05)
    return Segmented((), Metrics(points=1, points_per_batch=1), iter(()))


def make_workbench(settings: WorkerSettings) -> Workbench:
    return workbench_for(segment, settings)


if __name__ == "__main__":
    if sys.argv[1:]:
        _, devices, _, slots = sys.argv[1:]
        if int(slots) > int(os.environ.get("QUICK_FLEET_FITS", "64")):
            sys.exit("Error: they need more memory than there is.")
        settings = WorkerSettings().model_copy(update={"slots_per_device": int(slots)})
        run_fleet(devices, os.environ, settings, [sys.executable, "-m", "tests.worker.quick_fleet"])
    else:
        main(make_workbench)
