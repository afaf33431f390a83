"""The commands that talk to a server, run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from maskfleet import Client
from maskfleet.cli.main import COMMANDS, main
from maskfleet.stack.process import StackLine
from tests.maskfleet.conftest import Cli
from tests.maskfleet.scripted_server import Answer, ScriptedServer

BOX = ("--box", "304,14,366,73", "--box", "244,94,298,146")


@pytest.fixture
def server(running_stack: StackLine) -> dict[str, str]:
    return {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": running_stack.api_key}


def test_a_photo_is_submitted_awaited_and_fetched(
    cli: Cli, server: dict[str, str], coins: Path, tmp_path: Path
) -> None:
    submitted = cli("submit", coins, *BOX, "--outputs", "coco,png", "--metadata", "order=42", **server)
    job_id = submitted.stdout.strip()
    waited = cli("wait", job_id, **server)
    status = cli("status", job_id, "--json", **server)
    fetched = cli("fetch", job_id, "--out", "result", **server)

    assert (submitted.returncode, waited.returncode, fetched.returncode) == (0, 0, 0)
    assert waited.stdout.startswith(f"{job_id}  succeeded\n")
    job = json.loads(status.stdout)
    assert (job["status"], job["result"]["masks"], job["metadata"]) == ("succeeded", 2, {"order": "42"})
    assert fetched.stdout.splitlines()[-1] == "result/manifest.json"
    assert all((tmp_path / line).is_file() for line in fetched.stdout.splitlines())
    assert len(json.loads((tmp_path / "result" / "coco.json").read_text())["annotations"]) == 2


def test_a_folder_goes_through_the_service_and_is_gone_on_with(
    cli: Cli, server: dict[str, str], coins: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        (photos / name).write_bytes(coins.read_bytes())
    (photos / "page.jpg").write_text("<!DOCTYPE html>")
    batch = ("batch", "photos", *BOX, "--out", "masks", "--json")

    first = cli(*batch, **server)
    (photos / "page.jpg").unlink()
    second = cli(*batch, **server)

    assert (first.returncode, second.returncode) == (1, 0), first.stderr + second.stderr
    came = {line["photo"]: line for line in map(json.loads, first.stdout.splitlines())}
    assert [came[f"photos/{name}"]["masks"] for name in ("a.png", "b.png")] == [2, 2]
    assert came["photos/page.jpg"]["code"] == "not_an_image"
    assert [json.loads(line)["done_before"] for line in second.stdout.splitlines()] == [True, True]
    together = json.loads((tmp_path / "masks" / "coco.json").read_text())
    assert [image["file_name"] for image in together["images"]] == ["a.png", "b.png"]
    assert [one["image_id"] for one in together["annotations"]] == [1, 1, 2, 2]
    assert (tmp_path / "masks" / "b.png" / "overlay.png").is_file()


def test_submit_can_wait_and_print_json(cli: Cli, server: dict[str, str], coins: Path) -> None:
    answer = cli("submit", coins, "--mode", "point", "--point", "45,124", "--wait", "--json", **server)

    assert answer.returncode == 0
    assert json.loads(answer.stdout)["status"] == "succeeded"


def test_a_photo_is_encoded_and_then_named_by_its_id(cli: Cli, server: dict[str, str], coins: Path) -> None:
    embedded = cli("embed", coins, "--wait", **server)
    clicked = cli("submit", "--image-id", embedded.stdout.strip(), "--point", "45,124", "--wait", "--json", **server)
    neither = cli("submit", "--point", "45,124", **server)
    both = cli("submit", coins, "--image-id", embedded.stdout.strip(), **server)
    shown = cli("embed", coins, "--json", **server)

    assert (embedded.returncode, clicked.returncode) == (0, 0), embedded.stderr + clicked.stderr
    assert json.loads(clicked.stdout)["result"]["metrics"]["embedding"] == "memory"
    for refused in (neither, both):
        assert (refused.returncode, refused.stderr) == (
            2,
            "invalid_spec: PHOTO: Give either PHOTO, --image-id or --upload-id.\n",
        )
    assert json.loads(shown.stdout)["image_id"].startswith("img_")


def test_a_jobs_candidates_are_filtered_again_into_a_folder(
    cli: Cli, server: dict[str, str], coins: Path, tmp_path: Path
) -> None:
    grid = ("--points-per-crop", "4", "--pred-iou-thresh", "0.5", "--stability-score-thresh", "0.5")
    job = cli("submit", coins, *grid, "--keep-candidates", "--wait", "--json", **server)
    job_id = json.loads(job.stdout)["id"]

    made = cli("refilter", job_id, "--min-mask-area", "2000", "--out", tmp_path / "out", **server)
    below = cli("refilter", job_id, "--pred-iou-thresh", "0.4", **server)

    assert made.returncode == 0, made.stderr
    areas = [one["area"] for one in json.loads((tmp_path / "out" / "coco.json").read_text())["annotations"]]
    assert min(areas) >= 2000
    assert below.returncode == 2
    assert "Give 0.5 or more" in below.stderr


def test_a_job_is_exported_into_a_folder(cli: Cli, server: dict[str, str], coins: Path, tmp_path: Path) -> None:
    job = cli("submit", coins, "--point", "45,124", "--wait", "--json", **server)
    job_id = json.loads(job.stdout)["id"]

    made = cli("export", job_id, "--outputs", "svg,geojson", "--out", tmp_path / "out", **server)
    wrong = cli("export", job_id, "--outputs", "tiff", **server)

    assert made.returncode == 0, made.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"outlines.svg", "outlines.geojson", "manifest.json"}
    assert (wrong.returncode, wrong.stderr[:9]) == (2, "invalid_s")


def test_an_image_that_cannot_be_encoded_ends_with_its_reason(cli: Cli, server: dict[str, str]) -> None:
    answer = cli("embed", "s3://photos/nothing.png", "--wait", **server)

    assert answer.returncode == 1
    assert answer.stderr.startswith("image_not_found: ")


def test_submit_can_print_the_masks_themselves(cli: Cli, server: dict[str, str], coins: Path) -> None:
    masks = ("--inline", "rle", "--outputs", "")
    answer = cli("submit", coins, *BOX, *masks, "--wait", "--json", **server)

    assert answer.returncode == 0, answer.stderr
    job = json.loads(answer.stdout)
    assert [mask["prompt"] for mask in job["inline"]["masks"]] == [0, 1]
    assert cli("fetch", job["id"], **server).stdout.splitlines() == [f"{job['id']}/manifest.json"]


def test_cancel_ends_a_job(cli: Cli, server: dict[str, str], coins: Path, client: Client) -> None:
    job = client.submit(photo=coins, mode="everything", params={"points_per_crop": 128})

    answer = cli("cancel", job.id, **server)

    assert answer.returncode == 0
    assert client.wait(job.id, timeout_s=60).status == "canceled"


def test_a_failed_job_is_retried_and_then_deleted(
    cli: Cli, server: dict[str, str], running_stack: StackLine, client: Client
) -> None:
    job = client.submit(photo="s3://photos/nothing.png", mode="everything")
    assert client.wait(job.id, timeout_s=60).status == "failed"

    retried = cli("retry", job.id, **server)
    again = client.wait(job.id, timeout_s=60)
    deleted = cli("delete", job.id, **server)
    unknown = cli("delete", job.id, **server)

    assert retried.returncode == 0
    assert retried.stdout.startswith(job.id)
    assert (again.status, len(again.attempts or ())) == ("failed", 2)
    assert (deleted.returncode, deleted.stdout) == (0, "")
    assert (unknown.returncode, unknown.stderr.partition(":")[0]) == (2, "job_not_found")


def test_a_succeeded_job_is_not_retried_and_a_running_one_not_deleted(
    cli: Cli, server: dict[str, str], coins: Path, client: Client
) -> None:
    job = client.submit(photo=coins, mode="everything", params={"points_per_crop": 128})
    early = cli("delete", job.id, **server)
    client.cancel(job.id)
    client.wait(job.id, timeout_s=60)
    refused = cli("retry", job.id, **server)

    assert (early.returncode, early.stderr.partition(":")[0]) == (2, "job_not_ended")
    assert (refused.returncode, refused.stderr.partition(":")[0]) == (2, "job_not_failed")


def test_a_job_that_fails_says_why_and_ends_with_status_1(
    cli: Cli, server: dict[str, str], running_stack: StackLine
) -> None:
    answer = cli("submit", "s3://photos/nothing.png", *BOX, "--wait", **server)

    assert answer.returncode == 1
    assert "object_not_found: " in answer.stderr or "image_not_found: " in answer.stderr


def test_a_fault_of_the_caller_is_told_with_its_code_and_ends_with_status_2(
    cli: Cli, server: dict[str, str], coins: Path
) -> None:
    for arguments, code in (
        ((coins, "--point", "5000,1"), "point_outside_image"),
        ((coins, "--box", "9,1,2,3"), "invalid_spec"),
        ((coins, "--metadata", "order"), "invalid_spec"),
        (("ftp://example.com/bee.jpg",), "invalid_photo"),
        (("http://user@example.com/bee.jpg",), "invalid_spec"),
        ((coins, "--model", "facebook/sam-vit-enormous"), "unknown_model"),
    ):
        answer = cli("submit", *arguments, **server)

        assert answer.returncode == 2, arguments
        assert answer.stderr.startswith(f"{code}: "), answer.stderr
        assert answer.stdout == ""


def test_a_wrong_key_ends_with_status_2(cli: Cli, server: dict[str, str]) -> None:
    answer = cli("status", f"job_{'0' * 32}", **{**server, "MASKFLEET_API_KEY": "wrong"})

    assert (answer.returncode, answer.stderr.partition(":")[0]) == (2, "unknown_api_key")


def test_a_server_that_cannot_answer_now_ends_with_status_1(cli: Cli) -> None:
    away = Answer(503, b"<html>Back in an hour</html>", {"Retry-After": "3600"})
    with ScriptedServer(away) as server:
        answer = cli("status", "job_1", "--api-url", server.url)

    assert (answer.returncode, answer.stderr.partition(":")[0]) == (1, "http_503")


def test_without_a_server_the_commands_say_how_to_get_one(cli: Cli) -> None:
    answer = cli("status", "job_1")

    assert answer.returncode == 2
    assert answer.stderr.startswith("no_server: ")
    assert "maskfleet up" in answer.stderr


def test_a_stack_that_runs_from_this_folder_is_found_by_itself(
    cli: Cli, running_stack: StackLine, tmp_path: Path
) -> None:
    (tmp_path / ".maskfleet").symlink_to(running_stack.data)

    answer = cli("status", f"job_{'0' * 32}")

    assert (answer.returncode, answer.stderr.partition(":")[0]) == (2, "job_not_found")


def test_every_command_tells_its_options() -> None:
    def told(*arguments: str) -> str:
        return CliRunner().invoke(main, arguments, prog_name="maskfleet").stdout

    listed = told("--help")

    for name, (_, summary) in COMMANDS.items():
        assert name in listed
        assert summary in listed
        assert told(name, "--help").startswith(f"Usage: maskfleet {name} ")


#: Commands whose output is no data: programs of the service, and what is made to be looked at.
FOR_PEOPLE = {"api", "worker", "courier", "demo", "overlay", "completion", "webhook listen"}


def test_every_command_but_those_for_people_alone_can_print_json() -> None:
    context = click.Context(main)
    without = set()
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        several = command.commands if isinstance(command, click.Group) else {"": command}
        for part, one in several.items():
            if "--json" not in {option for parameter in one.params for option in parameter.opts}:
                without.add(f"{name} {part}".strip())

    assert without == FOR_PEOPLE


@pytest.mark.parametrize(
    "module",
    ["cli.main", "cli.jobs", "cli.deliveries", "cli.webhooks", "client", "cli.programs", "cli.up", "cli.demo"],
)
def test_no_command_imports_torch_before_it_needs_it(module: str) -> None:
    code = f"import sys, maskfleet.{module}; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"torch", "transformers", "flask"} & set(loaded)
