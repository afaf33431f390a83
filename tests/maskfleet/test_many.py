"""A command over many photographs: it goes on where it stopped, lists what failed, and merges what is done."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from maskfleet.cli.many import Did, Run, Task
from maskfleet.cli.photos import PROGRESS_FILE, find_photos
from maskfleet.cli.progress_file import ProgressFile
from maskfleet.client.errors import AuthenticationError, Refused, Unavailable
from maskfleet.jobs.errors import InvalidImage, InvalidRequest


class Worker:
    """Writes a dataset of one image and as many masks as the photo has bytes; fails where it is told to."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.keys: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.sends = False

    def do(self, task: Task) -> Did:
        name = Path(task.photo.name).name
        self.did.append(name)
        self.keys.append(task.key)
        if self.sends:
            task.sent(f"job_{name}")
        if name in self.fails:
            raise self.fails[name]
        assert task.photo.path
        masks = len(task.photo.path.read_bytes())
        task.folder.mkdir(parents=True, exist_ok=True)
        image = {"id": 1, "file_name": name, "width": 4, "height": 3}
        # Each is a part of the one before
        annotations = [
            {"id": number, "image_id": 1, "category_id": 1, "parent_id": number - 1 or None}
            for number in range(1, masks + 1)
        ]
        (task.folder / "coco.json").write_text(json.dumps({"images": [image], "annotations": annotations}))
        return Did(masks, 0.5)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three photographs in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png"), 1):
        (folder / name).write_bytes(bytes(number))
    return folder


@pytest.fixture
def worker() -> Worker:
    return Worker()


Go = Callable[..., int]


@pytest.fixture
def go(photos: Path, worker: Worker) -> Go:
    """Run the worker over the folder, into ``out``; return the exit status."""

    def run(options: str = "1", *, parallel: int = 1, as_json: bool = False) -> int:
        worker.did.clear()
        run = Run(Path("out"), options, worker.do, parallel=parallel, as_json=as_json)
        return run.do(find_photos(["photos"]).photos)

    return run


def merged() -> dict[str, list[dict[str, object]]]:
    document: dict[str, list[dict[str, object]]] = json.loads(Path("out/coco.json").read_text())
    return document


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_all_are_done_and_merged_in_their_order(go: Go, capsys: pytest.CaptureFixture[str], parallel: int) -> None:
    assert go(parallel=parallel) == 0

    document = merged()
    assert [(image["id"], image["file_name"]) for image in document["images"]] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "c.png"),
    ]
    assert [(one["id"], one["image_id"]) for one in document["annotations"]] == [
        *((1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 3))
    ]
    assert [one["parent_id"] for one in document["annotations"]] == [None, None, 2, None, 4, 5]
    said = capsys.readouterr()
    assert sorted(said.out.splitlines()) == [
        "photos/a.png: 1 mask, out/a.png",
        "photos/b.png: 2 masks, out/b.png",
        "photos/c.png: 3 masks, out/c.png",
    ]
    assert said.err == "3 of 3 photos done: 6 masks in out, all together in out/coco.json\n"


def test_what_is_done_is_skipped(go: Go, worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    go()
    before = merged()
    capsys.readouterr()

    assert go() == 0

    assert worker.did == []
    assert merged() == before
    assert capsys.readouterr().err.startswith("3 photos of 3 had been done before.\n3 of 3 photos done: 6 masks")


def test_what_fails_is_listed_the_rest_is_done_and_it_is_tried_again(
    go: Go, worker: Worker, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.fails = {"b.png": InvalidImage("not_an_image", "It is a page.")}
    first = go()
    listed = capsys.readouterr().err
    worker.fails = {}
    second = go()

    assert (first, second) == (1, 0)
    assert listed.splitlines()[-3:] == [
        "2 of 3 photos done: 4 masks in out, all together in out/coco.json",
        "1 photo failed; the same command tries them again:",
        f"  {photos}/b.png: not_an_image: It is a page.",
    ]
    assert worker.did == ["b.png"]
    assert [image["file_name"] for image in merged()["images"]] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("parallel", [1, 8])
@pytest.mark.parametrize(
    ("error", "status"),
    [(Unavailable("no_answer", "No response."), 1), (AuthenticationError("unknown_api_key", "No."), 2)],
)
def test_what_would_meet_every_photo_stops_the_run(
    go: Go, worker: Worker, error: Exception, status: int, parallel: int, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.fails = {"b.png": error}

    assert go(parallel=parallel) == status

    assert capsys.readouterr().err.endswith(f"Stopped. {error}\nThe same command goes on from here.\n")
    worker.fails = {}
    assert go() == 0
    assert "b.png" in worker.did


def test_ctrl_c_leaves_what_is_done(go: Go, worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    worker.fails = {"b.png": KeyboardInterrupt()}

    assert go() == 130

    assert capsys.readouterr().err.endswith("Interrupted.\nThe same command goes on from here.\n")
    assert [image["file_name"] for image in merged()["images"]] == ["a.png"]
    worker.fails = {}
    assert go() == 0
    assert worker.did == ["b.png", "c.png"]


def test_a_changed_photo_and_other_options_are_done_again_without_the_earlier_files(
    go: Go, worker: Worker, photos: Path
) -> None:
    go()
    left = Path("out/a.png/masks/0007.png")
    left.parent.mkdir()
    left.touch()
    (photos / "a.png").write_bytes(bytes(5))
    os.utime(photos / "a.png", (1, 1))

    go()
    changed = list(worker.did)
    go("2")

    assert changed == ["a.png"]
    assert not left.exists()
    assert worker.did == ["a.png", "b.png", "c.png"]


def test_a_photo_whose_results_were_deleted_is_done_again(go: Go, worker: Worker) -> None:
    go()
    Path("out/c.png/coco.json").unlink()

    go()

    assert worker.did == ["c.png"]


def test_the_key_is_the_same_when_a_run_is_repeated_and_another_after_a_failure(go: Go, worker: Worker) -> None:
    worker.fails = {"a.png": Unavailable("no_answer", "No response.")}
    go()
    worker.fails = {"a.png": Refused("image_corrupt", "It is damaged.")}
    go()
    worker.fails = {}
    go()

    first, repeated, *_ = (key for key in worker.keys)
    after = worker.keys[-1]
    assert first == repeated
    assert after != first


def test_a_job_that_was_sent_is_told_to_the_next_run(photos: Path, worker: Worker) -> None:
    worker.sends = True
    worker.fails = {"a.png": KeyboardInterrupt()}
    found = find_photos(["photos/a.png"]).photos
    told: list[str | None] = []

    Run(Path("out"), "1", worker.do).do(found)

    def look(task: Task) -> Did:
        told.append(task.earlier.job_id if task.earlier else None)
        raise Refused("enough", "Enough.")

    Run(Path("out"), "1", look).do(found)
    Run(Path("out"), "other", look).do(found)
    assert told == ["job_a.png", None]


def test_half_a_line_of_a_run_that_was_killed_is_passed_over(go: Go, worker: Worker) -> None:
    go()
    with Path("out", PROGRESS_FILE).open("a") as file:
        file.write('{"photo": "/half')

    assert go() == 0
    assert worker.did == []
    Path("out/c.png/coco.json").unlink()
    go()
    assert go() == 0
    assert worker.did == []


def test_a_photo_that_is_gone_is_listed_like_any_other_failure(
    photos: Path, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    found = find_photos(["photos"]).photos
    (photos / "b.png").unlink()

    assert Run(Path("out"), "1", worker.do).do(found) == 1
    assert "photos/b.png: failed, file_error: " in capsys.readouterr().err


def test_a_new_photo_does_not_take_the_folder_of_an_earlier_one(photos: Path, worker: Worker) -> None:
    other = photos.parent / "other"
    other.mkdir()
    (other / "a.png").write_bytes(bytes(7))

    Run(Path("out"), "1", worker.do).do(find_photos(["photos/a.png"]).photos)
    Run(Path("out"), "1", worker.do).do(find_photos(["other/a.png"]).photos)

    assert [image["file_name"] for image in merged()["images"]] == ["a.png_"]
    assert len(json.loads(Path("out/a.png/coco.json").read_text())["annotations"]) == 1


def test_json_is_one_object_per_photo_whatever_came_of_it(
    go: Go, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.fails = {"b.png": InvalidImage("not_an_image", "It is a page.")}
    go(as_json=True)
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    worker.fails = {}
    go(as_json=True)
    second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert first == [
        {
            "photo": "photos/a.png",
            "status": "succeeded",
            "masks": 1,
            "folder": "out/a.png",
            "done_before": False,
            "best_score": 0.5,
        },
        {"photo": "photos/b.png", "status": "failed", "code": "not_an_image", "detail": "It is a page."},
        {
            "photo": "photos/c.png",
            "status": "succeeded",
            "masks": 3,
            "folder": "out/c.png",
            "done_before": False,
            "best_score": 0.5,
        },
    ]
    assert [(line["photo"], line["done_before"]) for line in second] == [
        ("photos/a.png", True),
        ("photos/c.png", True),
        ("photos/b.png", False),
    ]


def test_two_runs_do_not_write_into_one_folder(photos: Path) -> None:
    with ProgressFile(Path("out")), pytest.raises(InvalidRequest, match="output_in_use"):
        ProgressFile(Path("out"))


def test_the_threads_work_at_the_same_time(photos: Path, worker: Worker) -> None:
    met = threading.Barrier(3, timeout=20)

    def meet(task: Task) -> Did:
        met.wait()
        return worker.do(task)

    assert Run(Path("out"), "1", meet, parallel=3).do(find_photos(["photos"]).photos) == 0


def test_on_a_terminal_each_line_stands_above_the_bar_with_the_time_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).touch()
    code = (
        "from pathlib import Path; from maskfleet.cli.many import Run; from maskfleet.cli.photos import find_photos\n"
        "from tests.maskfleet.test_many import Worker\n"
        "Run(Path('out'), '1', Worker().do).do(find_photos(['photos']).photos)"
    )
    ours, theirs = pty.openpty()
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b"".join(iter(partial(read_terminal, ours), b"")).decode()
    os.close(ours)

    assert process.returncode == 0, shown
    assert "left:" in shown
    lines = shown.replace("\x1b[2K", "").replace("\r", "\n").splitlines()
    assert {"photos/a.png: 0 masks, out/a.png", "photos/b.png: 0 masks, out/b.png"} <= set(lines)


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux' way to say that the other end is closed
        return b""
