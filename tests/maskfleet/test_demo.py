"""The demo, from its command to its images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from maskfleet.jobs.schema.manifest import Manifest
from tests.maskfleet.conftest import Cli


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_the_demo_shows_all_three_modes_and_stops_what_it_started(
    cli: Cli, demo_model: str, tmp_path: Path, coins: Path
) -> None:
    size_hw = pixels(coins).shape[:2]

    answer = cli("demo", timeout_s=280, MASKFLEET_MODEL=demo_model, TERM="dumb")

    assert answer.returncode == 0, answer.stderr
    assert "3 jobs succeeded, 3 signed webhooks verified, everything stopped." in answer.stdout
    for mode, masks in (("everything", None), ("point", 3), ("box", 5)):
        folder = tmp_path / "demo-output" / mode
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
        assert manifest.mode == mode
        assert len(manifest.masks) == (masks or len(manifest.masks)) > 0
        assert f"results/local/{manifest.job_id}" in answer.stdout
        assert len(json.loads((folder / "coco.json").read_text())["annotations"]) == len(manifest.masks)
        pictures = sorted((folder / "masks").iterdir())
        assert len(pictures) == len(manifest.masks)
        assert all(pixels(picture).shape == size_hw for picture in pictures)
        assert pixels(folder / "label_map.png").max() == len(manifest.masks)
        assert pixels(folder / "overlay.png").shape[:2] == size_hw


def test_the_demo_does_not_clear_a_folder_that_is_not_its_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "box").mkdir(parents=True)
    (tmp_path / "mine" / "box" / "thesis.txt").write_text("years of work")

    answer = cli("demo", "--out", "mine")

    assert answer.returncode == 1
    assert (tmp_path / "mine" / "box" / "thesis.txt").read_text() == "years of work"


def test_a_demo_that_is_told_to_stop_takes_its_stack_with_it(demo_model: str, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-u", "-m", "maskfleet", "demo"],
        cwd=tmp_path,
        env={**os.environ, "MASKFLEET_MODEL": demo_model, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        ready = next(line for line in demo.stdout if line.startswith("Ready at "))
        api_url = ready.split()[2].rstrip(".")
        assert requests.get(f"{api_url}/live", timeout=5).ok

        demo.terminate()

        assert demo.wait(30) != 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{api_url}/live", timeout=5)
