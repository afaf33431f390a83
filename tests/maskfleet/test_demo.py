"""The demo, from its command to its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.manifest import Manifest
from tests.maskfleet.conftest import Cli


def test_the_demo_shows_all_three_modes_and_stops_what_it_started(
    cli: Cli, demo_model: str, tmp_path: Path, coins: Path
) -> None:
    photo = Image.open(coins)

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
        assert all(Image.open(picture).size == photo.size for picture in pictures)
        assert np.asarray(Image.open(folder / "label_map.png")).max() == len(manifest.masks)
        assert Image.open(folder / "overlay.png").size == photo.size


def test_the_demo_does_not_clear_a_folder_that_is_not_its_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "box").mkdir(parents=True)
    (tmp_path / "mine" / "box" / "thesis.txt").write_text("years of work")

    answer = cli("demo", "--out", "mine")

    assert answer.returncode == 1
    assert (tmp_path / "mine" / "box" / "thesis.txt").read_text() == "years of work"
