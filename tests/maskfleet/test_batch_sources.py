"""A batch from a prefix on a running stack: through the client and the command line, with real masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from maskfleet import Client
from maskfleet.client.errors import Refused
from maskfleet.jobs.schema.batch import BatchView
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.process import StackLine
from maskfleet.stack.settings import PHOTOS_BUCKET
from tests.maskfleet.conftest import Cli
from tests.waiting import wait_until


@pytest.fixture
def photos(running_stack: StackLine) -> Store:
    fields = {"s3_access_key": running_stack.s3_access_key, "s3_secret_key": running_stack.s3_secret_key}
    return Store(SharedSettings(s3_endpoint=running_stack.s3_endpoint, bucket=PHOTOS_BUCKET, **fields))  # type: ignore[arg-type]  # pydantic makes them secrets


def test_the_images_under_a_prefix_become_one_dataset(
    client: Client, running_stack: StackLine, photos: Store, coins: Path, cli: Cli
) -> None:
    for name in ("one.png", "two.png"):
        photos.put(f"album/{name}", coins.read_bytes(), "image/png")
    photos.put("album/broken.png", b"no image", "image/png")
    server = {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": running_stack.api_key}

    batch = client.submit_batch_source(
        prefix=f"s3://{PHOTOS_BUCKET}/album/", pattern="*.png", mode="box", prompts=[{"box": (304, 14, 366, 73)}]
    )
    wait_until(lambda: client.batch(batch.id).status == "completed", deadline_s=120)
    done = client.batch(batch.id)
    link = requests.get(done.urls.coco or "", headers={"Authorization": f"Bearer {running_stack.api_key}"}, timeout=10)
    coco = link.json()
    [failure] = client.batch_failures(batch.id)
    shown = cli("batches", "show", batch.id, **server)
    listed = cli("batches", "failures", batch.id, "--json", **server)

    assert (done.counts.succeeded, done.counts.failed) == (2, 1)
    assert [(image["id"], image["file_name"]) for image in coco["images"]] == [(2, "one.png"), (3, "two.png")]
    assert sorted((one["id"], one["image_id"]) for one in coco["annotations"]) == [(1, 2), (2, 3)]
    assert all("counts" in one["segmentation"] for one in coco["annotations"])
    assert (failure.source, failure.code) == (f"s3://{PHOTOS_BUCKET}/album/broken.png", "not_an_image")
    assert shown.stdout == f"{batch.id} completed: 2 succeeded, 1 failed; 3 images found (done)\n"
    assert json.loads(listed.stdout)["code"] == "not_an_image"
    assert cli("batches", "delete", batch.id, **server).returncode == 0
    with pytest.raises(Refused, match="batch_not_found"):
        client.batch(batch.id)


def test_a_folder_in_s3_comes_into_a_folder_here_and_is_gone_on_with(
    running_stack: StackLine, photos: Store, coins: Path, cli: Cli, tmp_path: Path
) -> None:
    for name in ("deep/one.png", "two.png"):
        photos.put(f"shelf/{name}", coins.read_bytes(), "image/png")
    photos.put("shelf/broken.png", b"no image", "image/png")
    server = {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": running_stack.api_key}
    shelf = f"s3://{PHOTOS_BUCKET}/shelf"
    batch = ("batch", f"{shelf}/*.png", "--box", "304,14,366,73", "--out", "masks", "--json")

    first = cli(*batch, **server)
    photos.put("shelf/broken.png", coins.read_bytes(), "image/png")
    second = cli(*batch, **server)

    assert (first.returncode, second.returncode) == (1, 0), first.stderr + second.stderr
    came = {line["photo"]: line for line in map(json.loads, first.stdout.splitlines())}
    assert [came[f"{shelf}/{name}"]["folder"] for name in ("deep/one.png", "two.png")] == [
        "masks/deep/one.png",
        "masks/two.png",
    ]
    assert came[f"{shelf}/broken.png"]["code"] == "not_an_image"
    went_on = {line["photo"]: line["done_before"] for line in map(json.loads, second.stdout.splitlines())}
    assert went_on == {f"{shelf}/broken.png": False, f"{shelf}/deep/one.png": True, f"{shelf}/two.png": True}
    together = json.loads((tmp_path / "masks" / "coco.json").read_text())
    assert [image["file_name"] for image in together["images"]] == ["broken.png", "deep/one.png", "two.png"]
    assert [one["image_id"] for one in together["annotations"]] == [1, 2, 3]
    assert (tmp_path / "masks" / "deep" / "one.png" / "manifest.json").is_file()
    sent = [json.loads(line) for line in (tmp_path / "masks" / "progress.jsonl").read_text().splitlines()]
    assert len({line["batch_id"] for line in sent if "batch_id" in line}) == 1


def test_a_batch_is_made_and_canceled_on_the_command_line(
    client: Client, running_stack: StackLine, photos: Store, cli: Cli
) -> None:
    lines = "\n".join(json.dumps({"image": {"s3_uri": f"s3://{PHOTOS_BUCKET}/none/{n}.png"}}) for n in range(3000))
    photos.put("list.jsonl", lines.encode(), "application/jsonl")
    server = {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": running_stack.api_key}

    made = cli("batches", "create", f"s3://{PHOTOS_BUCKET}/list.jsonl", "--manifest", "--output", "png", **server)
    canceled = cli("batches", "cancel", made.stdout.strip(), "--json", **server)
    wait_until(lambda: client.batch(made.stdout.strip()).status == "completed", deadline_s=60)
    refused = cli("batches", "create", "s3://secrets/album/", **server)

    assert BatchView.model_validate_json(canceled.stdout).expansion is not None
    assert "bucket_not_allowed" in refused.stderr
