"""``maskfleet segment`` writes what it reports, and reports what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskfleet.cli.main import main
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from tests.conftest import PHOTOS_BUCKET
from tests.maskfleet.scripted_server import Answer, ScriptedServer


def run(repository: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maskfleet", "segment", *map(str, arguments)]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)


def invoke(*arguments: str | Path) -> Result:
    """Run it in this process, where torch is imported once."""
    return CliRunner().invoke(main, ["segment", *map(str, arguments)])


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
    ran = invoke(
        repository / "examples" / "coins.png",
        *("--model", repository / "models" / "sam-demo", "--points-per-crop", "5", "--points-per-batch", "10"),
        *("--pred-iou-thresh", "0.5", "--stability-score-thresh", "0.5", "--out", tmp_path),
    )

    assert ran.exit_code == 0, ran.stderr
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
    ran = invoke(repository / "examples" / "coins.png", *arguments, "--out", tmp_path / "out")

    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"{code}: ")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_image_is_told_by_its_code(repository: Path, tmp_path: Path) -> None:
    page = tmp_path / "photo.jpg"
    page.write_text("<!DOCTYPE html><html></html>")

    ran = invoke(page, "--out", tmp_path / "out")

    assert ran.exit_code == 2
    assert ran.stderr.startswith("not_an_image: ")


def test_a_model_that_is_not_there_is_a_failure_of_service(repository: Path, tmp_path: Path) -> None:
    ran = invoke(repository / "examples" / "coins.png", "--model", "./nothing-here", "--out", tmp_path / "out")

    assert ran.exit_code == 1
    assert ran.stderr.startswith("model_not_found: ")


COIN = ("--box", "304,14,366,73")


def test_the_first_call_gives_a_picture_and_says_what_the_demo_model_is_good_for(
    repository: Path, tmp_path: Path
) -> None:
    ran = invoke(repository / "examples" / "coins.png", *COIN, "--out", tmp_path)

    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.startswith("1 mask on 384×303 pixels, predicted IoU up to ")
    assert ran.stdout.endswith(f"; see {tmp_path}/overlay.png\n")
    assert "2 files in " in ran.stdout
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.size == (384, 303)
    assert "bundled demo model" in ran.stderr
    assert "no good for photographs" in ran.stderr
    assert "--model facebook/sam-vit-base" in ran.stderr


def test_a_folder_is_segmented_with_its_failures_listed_and_gone_on_with(repository: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    coins = (repository / "examples" / "coins.png").read_bytes()
    (photos / "coins.png").write_bytes(coins)
    (photos / "deep" / "page.jpg").write_text("<!DOCTYPE html>")
    command = ("segment", str(photos), *COIN, "--out", str(tmp_path / "masks"), "--json")

    first = CliRunner().invoke(main, command)
    (photos / "deep" / "page.jpg").write_bytes(coins)
    second = CliRunner().invoke(main, command)

    assert (first.exit_code, second.exit_code) == (1, 0), first.output + second.output
    done, failed = (json.loads(line) for line in first.stdout.splitlines())
    assert (done["photo"], done["status"], done["masks"]) == (str(photos / "coins.png"), "succeeded", 1)
    assert (failed["status"], failed["code"]) == ("failed", "not_an_image")
    assert [json.loads(line)["done_before"] for line in second.stdout.splitlines()] == [True, False]
    assert (tmp_path / "masks" / "deep" / "page.jpg" / "overlay.png").is_file()
    together = COCO(tmp_path / "masks" / "coco.json")
    assert [image["file_name"] for image in together.imgs.values()] == ["coins.png", "deep/page.jpg"]
    assert together.getAnnIds(imgIds=[2]) == [2]
    assert together.annToMask(together.anns[2]).sum() == together.anns[2]["area"]


def test_a_photo_comes_from_standard_input_an_address_or_a_bucket(
    repository: Path, tmp_path: Path, store_fields: dict[str, str]
) -> None:
    coins = (repository / "examples" / "coins.png").read_bytes()
    photos = Store(SharedSettings(**{**store_fields, "bucket": PHOTOS_BUCKET}))
    photos.put("2026/coins.png", coins, "image/png")
    settings = {f"MASKFLEET_{name.upper()}": value for name, value in store_fields.items()}
    command = ("segment", *COIN, "--json", "--out")

    with ScriptedServer(Answer(200, coins)) as server:
        answers = [
            CliRunner().invoke(main, [*command, str(tmp_path / "1"), "-"], input=coins),
            CliRunner().invoke(main, [*command, str(tmp_path / "2"), f"{server.url}/coins.png"]),
            CliRunner().invoke(main, [*command, str(tmp_path / "3"), "s3://photos/2026/coins.png"], env=settings),
        ]

    assert [answer.exit_code for answer in answers] == [0, 0, 0], [answer.output for answer in answers]
    assert [json.loads(answer.stdout)["masks"] for answer in answers] == [1, 1, 1]
    names = [json.loads((tmp_path / out / "coco.json").read_text())["images"][0]["file_name"] for out in "123"]
    assert names == ["image", "coins.png", "coins.png"]


def test_a_model_that_cannot_be_loaded_ends_a_run_at_once(repository: Path, tmp_path: Path) -> None:
    examples = (str(repository / "examples" / "coins.png"), str(repository / "examples" / "coffee.jpg"))

    answer = CliRunner().invoke(main, ["segment", *examples, "--model", "./nothing-here", "--out", str(tmp_path)])

    assert answer.exit_code == 1
    assert answer.stderr.count("model_not_found") == 1
