"""Other tools read coco.json, and the parts that run within them work, each with the tool's own package.

``make test-integrations`` makes an environment for each tool and runs this.  Not named test_*: it needs them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from maskfleet import Client
from maskfleet.stack.process import StackLine

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def result(running_stack: StackLine, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's files, which the tools are to read."""
    folder = tmp_path_factory.mktemp("result")
    outputs = ["coco", "coco_polygons", "png"]
    with Client(running_stack.api_url, running_stack.api_key) as client:
        masks = client.segment(repository / "examples" / "coins.png", mode="everything", outputs=outputs)
        masks.job.fetch(folder)
    return folder


@pytest.mark.parametrize("tool", ["fiftyone", "cvat", "label_studio", "napari"])
def test_maskfleet_works_with(
    tool: str, running_stack: StackLine, result: Path, repository: Path, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        # Whatever a tool keeps in its user's folders goes elsewhere; Python keeps what it compiled.
        "HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "",
        "FIFTYONE_DO_NOT_TRACK": "true",
        "QT_QPA_PLATFORM": "xcb",
        "MASKFLEET_API_URL": running_stack.api_url,
        "MASKFLEET_API_KEY": running_stack.api_key,
        "INTEGRATIONS_RESULT": str(result),
    }
    python = repository / "build" / "integrations" / tool / "bin" / "python"
    # napari draws with OpenGL, which Qt's platform "offscreen" has not.
    screen = ["xvfb-run", "--auto-servernum", "--server-args=-screen 0 1280x1024x24"] if tool == "napari" else []

    ran = subprocess.run(
        [*screen, python, "-m", "pytest", "-c", HERE / "tools.ini", *sorted(HERE.glob(f"test_{tool}*.py"))],
        env=environment,
        cwd=tmp_path,
        timeout=240,
    )

    assert ran.returncode == 0  # what it says is on the screen
