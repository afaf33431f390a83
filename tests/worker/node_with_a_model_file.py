"""``python -m tests.worker.node_with_a_model_file``: a node whose model is the text of two files in TEST_MODEL.

``weights`` is read when the model is loaded, ``device`` whenever the model is tested; both should say "right".
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from maskfleet.jobs.errors import ModelWrong
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.app import main, workbench_for
from tests.faults.stand_in import segment

if TYPE_CHECKING:
    from maskfleet.worker.attempt import Workbench


def make_workbench(settings: WorkerSettings) -> Workbench:
    folder = Path(os.environ["TEST_MODEL"])
    weights = (folder / "weights").read_text()

    def test_model() -> None:
        if weights != "right" or (folder / "device").read_text() != "right":
            raise ModelWrong("Its masks are others.", recorded=True)

    return replace(workbench_for(segment, settings), test_model=test_model)


if __name__ == "__main__":
    main(make_workbench)
