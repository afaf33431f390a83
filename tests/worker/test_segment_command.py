"""``maskfleet segment`` writes what it reports, and reports what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask


def run(repository: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maskfleet", "segment", *map(str, arguments)]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)


def test_boxes_on_the_coins_give_every_file_that_was_asked_for(repository: Path, tmp_path: Path) -> None:
    ran = run(
        repository,
        "examples/coins.png",
        *("--mode", "box", "--box", "90,30,142,76", "--box", "20,30,70,78", "--point", "", "--point", "45,50;75,75"),
        *("--label", "", "--label", "1,0", "--out", tmp_path, "--outputs", "png,label_map,overlay,masks_zip"),
        *("--overlay-format", "jpeg"),
    )

    assert ran.returncode == 0, ran.stderr
    assert "2 masks on 384×303 pixels" in ran.stdout
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        *("coco.json", "masks/0000.png", "masks/0001.png", "masks.zip", "label_map.png", "overlay.jpg"),
    }
    document = json.loads((tmp_path / "coco.json").read_text())
    assert document["images"] == [{"id": 1, "file_name": "coins.png", "width": 384, "height": 303}]
    assert [record["prompt"] for record in document["annotations"]] == [0, 1]
    assert document["annotations"][1]["point_coords"] == [[45, 50], [75, 75]]
    first = coco_mask.decode(document["annotations"][0]["segmentation"]).astype(bool)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "0000.png")), first)


def test_everything_takes_the_pipelines_parameters(repository: Path, tmp_path: Path) -> None:
    ran = run(
        repository,
        "examples/coins.png",
        *("--model", "models/sam-demo", "--points-per-crop", "5", "--points-per-batch", "10"),
        *("--pred-iou-thresh", "0.5", "--stability-score-thresh", "0.5", "--out", tmp_path),
    )

    assert ran.returncode == 0, ran.stderr
    document = json.loads((tmp_path / "coco.json").read_text())
    assert document["metrics"]["points"] == 25
    assert document["metrics"]["points_per_batch"] == 10
    assert all(record["predicted_iou"] > 0.5 for record in document["annotations"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--box", "5,5,2,9"], "invalid_spec"),
        (["--mode", "everything", "--pred-iou-thresh", "7"], "invalid_spec"),
        (["--point", "999,10"], "point_outside_image"),
    ],
)
def test_a_callers_fault_is_told_by_its_code(repository: Path, tmp_path: Path, arguments: list[str], code: str) -> None:
    ran = run(repository, "examples/coins.png", *arguments, "--out", tmp_path / "out")

    assert ran.returncode == 2
    assert ran.stderr.startswith(f"{code}: ")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_image_is_told_by_its_code(repository: Path, tmp_path: Path) -> None:
    page = tmp_path / "photo.jpg"
    page.write_text("<!DOCTYPE html><html></html>")

    ran = run(repository, page, "--out", tmp_path / "out")

    assert ran.returncode == 2
    assert ran.stderr.startswith("not_an_image: ")


def test_a_model_that_is_not_there_is_a_failure_of_service(repository: Path, tmp_path: Path) -> None:
    ran = run(repository, "examples/coins.png", "--model", "./nothing-here", "--out", tmp_path / "out")

    assert ran.returncode == 1
    assert ran.stderr.startswith("model_not_found: ")
