"""The commands for jobs, each with a server that sends what the test says.  With a whole service: test_commands.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from maskfleet.cli.main import main
from maskfleet.jobs.schema.api import JobPage, ModelList, ModelView, UploadView
from maskfleet.jobs.schema.batch import (
    BatchCounts,
    BatchError,
    BatchFile,
    BatchSourceView,
    BatchStatus,
    BatchUrls,
    BatchView,
    Expansion,
    ExpansionView,
)
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import Failure, JobView, Metrics, ResultSummary
from maskfleet.jobs.status import Status
from tests.maskfleet.scripted_server import Answer, ScriptedServer
from tests.maskfleet.test_transport import JOB, manifest_of, problem
from tests.waiting import wait_until

REAL = JOB.model_copy(update={"model": "sam-vit-base"})
SUCCEEDED = REAL.model_copy(
    update={
        "status": Status.SUCCEEDED,
        "result": ResultSummary(
            prefix="results/local/1/",
            manifest_key="results/local/1/manifest.json",
            masks=1,
            best_score=0.97,
            metrics=Metrics(),
        ),
    }
)
FAILED = REAL.model_copy(
    update={"status": Status.FAILED, "error": Failure(code="image_corrupt", detail="It is damaged.")}
)
MODELS = ModelList(
    models=(
        ModelView(name="sam-vit-base", default=True, ready_workers=1),
        ModelView(name="sam-demo", default=False, ready_workers=0),
    )
)
COCO = json.dumps({"images": [{"id": 1, "file_name": "x"}], "annotations": [{"id": 1, "image_id": 1}]}).encode()
NO_STREAM = Answer(404, b"<html>No such page</html>")
#: Where nobody waits for anything: the last answer of a script is sent again and again.
UNEXPECTED = problem(409, "unexpected_call")


def as_answer(view: JobView | JobPage | ModelList | UploadView | Manifest, status: int = 200) -> Answer:
    return Answer(status, view.model_dump_json().encode())


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two photographs."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def run(server: ScriptedServer, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--api-url", server.url, "--api-key", "mf_1"])


def calls(server: ScriptedServer) -> list[str]:
    return [f"{asked.method} {asked.path.partition('?')[0].replace(JOB.id, 'ID')}" for asked in server.asked]


def test_a_job_that_is_awaited_says_how_to_get_its_files_and_names_no_key_of_the_store() -> None:
    with ScriptedServer(as_answer(REAL, 202), NO_STREAM, as_answer(SUCCEEDED)) as server:
        answer = run(server, "submit", "a.png", "--wait")

    assert answer.exit_code == 0, answer.stderr
    assert "  1 mask, best score 0.970\n" in answer.stdout
    assert answer.stdout.endswith(f"  its files: maskfleet fetch {JOB.id}\n")
    assert "results/local" not in answer.stdout
    assert answer.stderr == ""


def test_a_job_with_a_folder_is_awaited_and_fetched() -> None:
    with ScriptedServer(as_answer(REAL, 202), NO_STREAM, as_answer(SUCCEEDED)) as server:
        server.then(as_answer(manifest_of(server.url, COCO, "coco.json")), Answer(200, COCO), UNEXPECTED)
        answer = run(server, "submit", "a.png", "--out", "masks")

    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout.endswith("  files in masks\n")
    assert Path("masks/coco.json").read_bytes() == COCO
    assert Path("masks/manifest.json").is_file()


def test_a_job_that_failed_writes_no_folder() -> None:
    with ScriptedServer(as_answer(REAL, 202), NO_STREAM, as_answer(FAILED), UNEXPECTED) as server:
        answer = run(server, "submit", "a.png", "--out", "masks")

    assert answer.exit_code == 1
    assert answer.stderr == "image_corrupt: It is damaged.\n"
    assert not Path("masks").exists()


def test_the_default_is_a_picture_beside_the_dataset() -> None:
    with ScriptedServer(as_answer(REAL, 202)) as server:
        run(server, "submit", "a.png")
        run(server, "submit", "a.png", "--outputs", "coco")

    assert [b'"outputs":["coco","overlay"]' in asked.body for asked in server.asked] == [True, False]


def test_many_photos_are_sent_and_those_that_are_refused_are_listed() -> None:
    refused = problem(422, "image_not_allowed")
    with ScriptedServer(as_answer(REAL, 202), refused, as_answer(REAL, 202), UNEXPECTED) as server:
        answer = run(server, "submit", "*.png", "https://example.com/c.png")

    assert answer.exit_code == 1
    assert answer.stdout == f"{JOB.id}\n{JOB.id}\n"
    assert answer.stderr == "b.png: image_not_allowed: Do otherwise.\n"


def test_many_photos_are_awaited_after_all_are_sent() -> None:
    script = [as_answer(REAL, 202)] * 2 + [NO_STREAM, as_answer(SUCCEEDED), NO_STREAM, as_answer(FAILED), UNEXPECTED]
    with ScriptedServer(*script) as server:
        answer = run(server, "submit", "a.png", "b.png", "--wait", "--json")

    assert answer.exit_code == 1
    assert [json.loads(line)["status"] for line in answer.stdout.splitlines()] == ["succeeded", "failed"]
    assert calls(server)[:2] == ["POST /v1/jobs"] * 2


def test_one_key_for_many_jobs_is_refused() -> None:
    with ScriptedServer(UNEXPECTED) as server:
        answer = run(server, "submit", "a.png", "b.png", "--idempotency-key", "k")

    assert answer.exit_code == 2
    assert server.asked == []


@pytest.mark.parametrize(
    "words", [(), ("a.png", "--image-id", f"img_{'0' * 32}"), ("--image-id", "x", "--upload-id", "y")]
)
def test_a_job_has_one_image(words: tuple[str, ...]) -> None:
    with ScriptedServer(UNEXPECTED) as server:
        answer = run(server, "submit", *words)

    assert (answer.exit_code, answer.stderr) == (
        2,
        "invalid_spec: PHOTO: Give either PHOTO, --image-id or --upload-id.\n",
    )


def test_an_upload_is_named_by_its_id() -> None:
    with ScriptedServer(as_answer(REAL, 202)) as server:
        run(server, "submit", "--upload-id", f"upl_{'a' * 32}")

    assert json.loads(server.asked[0].body)["image"] == {"upload_id": f"upl_{'a' * 32}"}


def test_what_the_server_finds_is_told_in_the_words_of_the_command_line() -> None:
    faults = [
        {"pointer": "/prompts/0/points/0", "code": "point_outside_image", "detail": "The point [5, 5] is outside."},
        {"pointer": "/prompts/1/box", "code": "box_outside_image", "detail": "The box is outside."},
    ]
    found = problem(422, "point_outside_image", errors=faults)
    document = json.loads(found.body) | {"detail": "/prompts/0/points/0: The point [5, 5] is outside."}
    with ScriptedServer(Answer(422, json.dumps(document).encode())) as server:
        answer = run(server, "submit", "a.png", "--point", "5,5")

    assert answer.stderr == (
        "point_outside_image: --point: The point [5, 5] is outside.\n  --box of object 2: The box is outside.\n"
    )


def test_the_demo_model_is_said_to_be_no_good_for_photographs_and_another_is_not() -> None:
    with ScriptedServer(as_answer(JOB, 202), as_answer(REAL, 202)) as server:
        demo = run(server, "submit", "a.png")
        real = run(server, "submit", "a.png")

    assert "no good for photographs" in demo.stderr
    assert "maskfleet up --model facebook/sam-vit-base" in demo.stderr
    assert real.stderr == ""


def test_a_batch_goes_from_a_folder_to_a_folder() -> None:
    (Path("photos")).mkdir()
    Path("a.png").rename("photos/a.png")
    with ScriptedServer(as_answer(MODELS), as_answer(REAL, 202), as_answer(SUCCEEDED)) as server:
        server.then(as_answer(manifest_of(server.url, COCO, "coco.json")), Answer(200, COCO), UNEXPECTED)
        answer = run(server, "batch", "photos", "--out", "masks", "--parallel", "1")

    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout == "photos/a.png: 1 mask, masks/a.png\n"
    assert answer.stderr == "1 of 1 photo done: 1 mask in masks, all together in masks/coco.json\n"
    assert b'"priority":"bulk"' in server.asked[1].body
    together = json.loads(Path("masks/coco.json").read_text())
    assert together["images"] == [{"id": 1, "file_name": "a.png"}]


def test_a_batch_that_was_stopped_goes_on_with_the_job_that_it_had_sent() -> None:
    locked_out = problem(401, "unknown_api_key")
    with ScriptedServer(as_answer(MODELS), as_answer(REAL, 202), locked_out) as server:
        stopped = run(server, "batch", "a.png", "--parallel", "1")
    with ScriptedServer(as_answer(MODELS), as_answer(REAL), as_answer(SUCCEEDED)) as server:
        server.then(as_answer(manifest_of(server.url, COCO, "coco.json")), Answer(200, COCO), UNEXPECTED)
        went_on = run(server, "batch", "a.png", "--parallel", "1")

    assert (stopped.exit_code, went_on.exit_code) == (2, 0), went_on.stderr
    assert calls(server) == [
        "GET /v1/models",
        "GET /v1/jobs/ID",
        "GET /v1/jobs/ID",
        "GET /v1/jobs/ID/result",
        "GET /bucket/coco.json",
    ]


def interrupted(server: ScriptedServer, word: str, *, asked: int) -> tuple[int, str]:
    """Press Ctrl-C in a batch once the server was asked so often; return the exit status and stderr."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    # A shell's background job, as the suite may be, inherits SIGINT as ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from maskfleet.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "batch", word, "--api-url", server.url, "--api-key", "mf_1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as batch:
        wait_until(lambda: len(server.asked) >= asked, 60)
        batch.send_signal(signal.SIGINT)
        _, said = batch.communicate(timeout=60)
    return batch.returncode, said


def test_ctrl_c_ends_a_batch_at_once_and_keeps_the_job_that_it_had_sent() -> None:
    with ScriptedServer(as_answer(MODELS), as_answer(REAL, 202), as_answer(REAL)) as server:
        status, said = interrupted(server, "a.png", asked=3)  # it waits for its job

    assert status == 130
    assert said.endswith("Interrupted.\nThe same command goes on from here.\n")
    *_, last = Path("masks-out/progress.jsonl").read_text().splitlines()
    assert (json.loads(last)["status"], json.loads(last)["job_id"]) == ("sent", JOB.id)


def test_ctrl_c_leaves_the_batch_of_a_folder_in_s3_to_the_server() -> None:
    made = OF_S3.model_dump_json().encode()
    with ScriptedServer(as_answer(MODELS), Answer(202, made), Answer(200, made)) as server:
        status, said = interrupted(server, "s3://photos/2026/", asked=3)  # it waits for its batch

    assert status == 130
    assert said.endswith("Interrupted. The server goes on; the same command comes back to it.\n")


def test_a_batch_repeats_a_call_whose_answer_was_lost_under_the_same_key() -> None:
    keys = []
    for _ in range(2):
        with ScriptedServer(as_answer(MODELS), problem(401, "unknown_api_key")) as server:
            run(server, "batch", "a.png", "--parallel", "1")
        keys.append(server.asked[1].headers["idempotency-key"])

    assert keys[0] == keys[1]


def test_a_folder_that_is_submitted_with_an_output_folder_is_a_batch() -> None:
    with ScriptedServer(as_answer(MODELS), problem(401, "unknown_api_key")) as server:
        answer = run(server, "submit", ".", "--out", "masks")

    assert answer.exit_code == 2
    assert Path("masks/progress.jsonl").is_file()


OF_S3 = BatchView(
    id=f"batch_{'1' * 32}",
    status=BatchStatus.PROCESSING,
    created_at=JOB.created_at,
    total=0,
    done=0,
    counts=BatchCounts(queued=0, processing=0, succeeded=0, failed=0, canceled=0, expired=0),
    job_ids=(),
    urls=BatchUrls(self="http://a/1", deliveries="http://a/2"),
)
OUTCOMES = b'{"number": 1, "status": "canceled", "source": "s3://photos/2026/a.png", "job_id": "job_1"}\n'


def ended(error: BatchError | None = None, outcomes: bytes = OUTCOMES, total: int = 1) -> Answer:
    expansion = ExpansionView(
        state=Expansion.FAILED if error else Expansion.DONE, listed=1, expanded=1, rejected=0, error=error
    )
    file = BatchFile(name="outcomes.jsonl", size=len(outcomes), content_type="application/jsonl")
    changed = {"status": BatchStatus.COMPLETED, "total": total, "expansion": expansion, "files": (file,)}
    return Answer(200, OF_S3.model_copy(update={**changed, "source": BatchSourceView()}).model_dump_json().encode())


@pytest.mark.parametrize(
    ("word", "pattern"),
    [("s3://photos/2026/", "*"), ("s3://photos/2026/*.jpg", "*.jpg"), ("s3://photos/2026/b?e", "b?e")],
)
def test_a_batch_of_a_folder_in_s3_is_sent_once_and_waited_for_again(word: str, pattern: str) -> None:
    locked_out = problem(401, "unknown_api_key")
    made = Answer(202, OF_S3.model_dump_json().encode())
    with ScriptedServer(as_answer(MODELS), locked_out) as server:  # as if the answer had been lost
        run(server, "batch", word, "--box", "1,2,3,4", "--run-timeout-s", "60")
        lost = server.asked[-1]
    with ScriptedServer(as_answer(MODELS), made, locked_out, as_answer(MODELS), locked_out) as server:
        stopped = run(server, "batch", word, "--box", "1,2,3,4", "--run-timeout-s", "60")
        again = run(server, "batch", word, "--box", "1,2,3,4", "--run-timeout-s", "60")
        refused = run(server, "batch", word, "a.png")

    assert (stopped.exit_code, again.exit_code, refused.exit_code) == (2, 2, 2)
    assert f"maskfleet batches cancel {OF_S3.id}\n" in stopped.stderr
    assert json.loads(lost.body) == {
        "mode": "box",
        "prompts": [{"box": [1, 2, 3, 4]}],
        "outputs": ["coco"],
        "priority": "bulk",
        "run_timeout_s": 60,
        "source": {"prefix": "s3://photos/2026/", "pattern": pattern},
    }
    assert server.asked[1].headers["idempotency-key"] == lost.headers["idempotency-key"]
    assert calls(server)[1:] == [
        "POST /v1/batches",
        f"GET /v1/batches/{OF_S3.id}",
        "GET /v1/models",
        f"GET /v1/batches/{OF_S3.id}",
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, ["1 photo failed", "s3://photos/2026/a.png: canceled: The job job_1 was canceled."]),
        (
            BatchError(code="source_not_found", detail="The bucket is gone."),
            ["source_not_found: The bucket is gone.", "The same command begins with the rest."],
        ),
    ],
    ids=["a job was canceled", "not all were found"],
)
def test_what_is_missing_of_a_folder_in_s3_is_said(error: BatchError | None, said: list[str]) -> None:
    made = Answer(202, OF_S3.model_dump_json().encode())
    with ScriptedServer(as_answer(MODELS), made, ended(error), ended(error)) as server:
        link = Answer(307, b"", {"Location": f"{server.url}/bucket/outcomes.jsonl"})
        server.then(link, Answer(200, OUTCOMES), as_answer(MODELS), UNEXPECTED)
        answer = run(server, "batch", "s3://photos/2026/", "--out", "masks")
        run(server, "batch", "s3://photos/2026/", "--out", "masks")

    assert answer.exit_code == 1
    assert all(sentence in answer.stderr for sentence in said), answer.stderr
    # A batch that is about all images is known; each that failed is sent by itself.
    assert calls(server)[7] == ("POST /v1/batches" if error else "POST /v1/jobs")


def test_a_pattern_that_no_object_in_s3_has_is_said() -> None:
    made = Answer(202, OF_S3.model_dump_json().encode())
    with ScriptedServer(as_answer(MODELS), made, ended(outcomes=b"", total=0), UNEXPECTED) as server:
        answer = run(server, "batch", "s3://photos/2026/*.jpeg")

    assert answer.exit_code == 2
    assert "no_photos: No object in s3://photos/2026/ has a name like '*.jpeg'." in answer.stderr


def test_jobs_are_listed_in_columns_and_as_json() -> None:
    page = JobPage(jobs=(REAL, SUCCEEDED, FAILED), next=None, next_cursor=None)
    with ScriptedServer(as_answer(page)) as server:
        shown = run(server, "jobs", "--status", "failed", "--limit", "2")
        everything = run(server, "jobs", "--json")

    first, second = shown.stdout.splitlines()
    assert first.split()[:4] == [JOB.id, "queued", "everything", "sam-vit-base"]
    assert second.endswith("  1 mask")
    assert server.asked[0].path == "/v1/jobs?status=failed"
    assert [json.loads(line)["status"] for line in everything.stdout.splitlines()] == ["queued", "succeeded", "failed"]


def test_a_mistyped_state_is_answered_with_the_one_that_is_meant() -> None:
    with ScriptedServer(UNEXPECTED) as server:
        answer = run(server, "jobs", "--status", "suceeded")

    assert answer.exit_code == 2
    assert "Did you mean 'succeeded'?" in answer.stderr


def test_no_jobs_are_said_so() -> None:
    with ScriptedServer(as_answer(JobPage(jobs=(), next=None, next_cursor=None))) as server:
        answer = run(server, "jobs")

    assert (answer.exit_code, answer.stdout, answer.stderr) == (0, "", "No jobs.\n")


def test_models_are_listed_with_their_workers() -> None:
    with ScriptedServer(as_answer(MODELS)) as server:
        shown = run(server, "models")
        as_json = run(server, "models", "--json")

    assert shown.stdout == "sam-vit-base  1 ready worker  default\nsam-demo  0 ready workers\n"
    assert json.loads(as_json.stdout.splitlines()[0]) == {"name": "sam-vit-base", "default": True, "ready_workers": 1}


def test_photos_are_uploaded_and_those_that_fail_are_listed() -> None:
    def to(server: ScriptedServer) -> Answer:
        view = UploadView(upload_id="upl_1", url=f"{server.url}/put", headers={}, expires_at=JOB.created_at)
        return as_answer(view)

    with ScriptedServer(problem(413, "image_too_large")) as server:
        server.then(to(server), Answer(200), UNEXPECTED)
        answer = run(server, "upload", "a.png", "b.png", "--json")
        address = run(server, "upload", "https://example.com/a.png")

    assert answer.exit_code == 1
    assert json.loads(answer.stdout) == {"photo": "b.png", "upload_id": "upl_1"}
    assert answer.stderr == "a.png: image_too_large: Do otherwise.\n"
    assert (address.exit_code, address.stderr.partition(":")[0]) == (2, "invalid_photo")


def test_the_page_of_a_job_is_named_without_the_key() -> None:
    with ScriptedServer(as_answer(SUCCEEDED)) as server:
        of_job = run(server, "open", JOB.id, "--print")
        of_server = run(server, "open", "--print")

    assert of_job.stdout == f"{server.url}/#job={JOB.id}\n"
    assert of_server.stdout == f"{server.url}/\n"


def test_a_jobs_overlay_is_written_to_a_file_where_there_is_no_terminal() -> None:
    with ScriptedServer() as server:
        server.then(*[as_answer(manifest_of(server.url, b"picture", "overlay.png"))] * 2, Answer(200, b"picture"))
        answer = run(server, "overlay", JOB.id)

    assert (answer.exit_code, answer.stdout) == (0, f"{JOB.id}-overlay.png\n"), answer.stderr
    assert Path(f"{JOB.id}-overlay.png").read_bytes() == b"picture"


def test_a_job_without_an_overlay_says_so() -> None:
    with ScriptedServer(as_answer(manifest_of("http://127.0.0.1:1", b"", "coco.json"))) as server:
        answer = run(server, "overlay", JOB.id)

    assert (answer.exit_code, answer.stderr.partition(":")[0]) == (2, "no_overlay")


def test_an_overlay_that_is_not_the_manifests_file_is_not_kept() -> None:
    with ScriptedServer() as server:
        server.then(*[as_answer(manifest_of(server.url, b"picture", "overlay.png"))] * 2, Answer(200, b"p1cture"))
        answer = run(server, "overlay", JOB.id)

    assert (answer.exit_code, answer.stderr.partition(":")[0]) == (1, "damaged_file")
    assert list(Path().glob("*overlay*")) == []


def test_a_deletion_and_a_manifest_can_be_json() -> None:
    with ScriptedServer() as server:
        server.then(Answer(204), as_answer(manifest_of(server.url, COCO, "coco.json")), Answer(200, COCO))
        deleted = run(server, "delete", JOB.id, "--json")
        fetched = run(server, "fetch", JOB.id, "--json")

    assert json.loads(deleted.stdout) == {"id": JOB.id, "deleted": True}
    assert [file["name"] for file in json.loads(fetched.stdout)["files"]] == ["coco.json"]
    assert "signature" not in fetched.stdout
