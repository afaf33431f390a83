"""``maskfleet top``: what it shows of a fleet, once and as it changes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from maskfleet.cli.main import main
from maskfleet.cli.top import Throughput, duration, shown
from maskfleet.jobs.fleet import ClassLoad, FleetRules, ModelLoad, WorkerCounts
from maskfleet.jobs.schema.fleet import FleetView, FleetWorker, ModelFleet, WorkerState
from maskfleet.jobs.schema.spec import Priority
from maskfleet.stack.process import StackLine
from tests.maskfleet.scripted_server import Answer, ScriptedServer

LOAD = ModelLoad(
    "sam-demo",
    (ClassLoad(Priority.INTERACTIVE), ClassLoad(Priority.NORMAL, 1200, 1, oldest_s=192.4, job_s=3)),
    WorkerCounts(starting=1, ready=1, withdrawn=1),
)


def worker(node: str, state: WorkerState, jobs: int = 0, *, fault: str | None = None) -> FleetWorker:
    return FleetWorker(
        node=node,
        model="sam-demo",
        device="cpu",
        state=state,
        job="job_1" if state is WorkerState.BUSY else None,
        since=datetime.now(UTC) - timedelta(minutes=5),
        version="0.1.0",
        seen_s_ago=2,
        jobs=jobs,
        start_s=None if state is WorkerState.STARTING else 12.5,
        fault=fault,
    )


def a_fleet(jobs: int = 0) -> FleetView:
    return FleetView(
        models=(ModelFleet.of(LOAD, FleetRules()),),
        workers=(
            worker("sam-cpu@a", WorkerState.BUSY, jobs),
            worker("sam-cpu@b", WorkerState.STARTING),
            worker("sam-cpu@c", WorkerState.WITHDRAWN, fault="model_wrong: \x1b[2J"),
        ),
    )


def text_of(view: FleetView, throughput: Throughput, trouble: str = "", *, rows: int | None = None) -> str:
    console = Console(width=220)
    with console.capture() as capture:
        console.print(shown(view, throughput, trouble, rows=rows))
    return capture.get()


def run(*arguments: str, answer: Answer | None = None) -> tuple[Result, str]:
    body = a_fleet().model_dump_json().encode()
    with ScriptedServer(answer or Answer(200, body, {"Content-Type": "application/json"})) as server:
        result = CliRunner().invoke(
            main, ["top", *arguments, "--api-url", server.url, "--api-key", "mf_key"], env={"COLUMNS": "220"}
        )
    return result, server.asked[0].path


def test_a_fleet_is_shown_with_what_it_has_to_do_and_who_does_it() -> None:
    text = text_of(a_fleet(), Throughput())

    header, model, reason, *_ = text.splitlines()
    assert header.split()[:3] == ["MODEL", "QUEUED", "RUNNING"]
    for found in ("sam-demo", "1,200", "3 m 12 s", "1 h"):
        assert found in model
    assert reason.startswith("sam-demo: 61 desired (backlog). 1,200 queued and 1 running jobs")
    rows = [line for line in text.splitlines() if line.startswith("sam-cpu@")]
    assert [row.split()[:2] for row in rows] == [
        ["sam-cpu@c", "withdrawn"],
        ["sam-cpu@b", "starting"],
        ["sam-cpu@a", "busy"],
        ["sam-cpu@c:", "model_wrong:"],
    ]
    for found in ("5 m", "cpu", "job_1", "12 s", "2 s", "0.1.0"):
        assert found in rows[2]
    assert "\x1b[2J" not in text


def test_throughput_is_what_the_workers_counts_grew_by_within_a_minute() -> None:
    throughput = Throughput()

    throughput.note(a_fleet(100), 0)
    assert throughput.per_minute("sam-demo") is None
    for second, jobs in ((10, 110), (20, 3), (30, 13)):  # its process was replaced meanwhile
        throughput.note(a_fleet(jobs), second)

    assert throughput.per_minute("sam-demo") == 60 * (10 + 3 + 10) / 30
    throughput.note(a_fleet(13), 100)
    throughput.note(a_fleet(14), 160)
    assert throughput.per_minute("sam-demo") == 1


def test_a_terminal_too_small_for_all_shows_those_that_need_somebody() -> None:
    text = text_of(a_fleet(), Throughput(), "unavailable: no answer", rows=13)

    assert "sam-cpu@a" not in text
    assert "… and 2 more workers" in text
    assert "this was seen last. unavailable: no answer" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (4.23, "4.2 s"),
        (59.9, "60 s"),
        (192.4, "3 m 12 s"),
        (7500, "2 h 5 m"),
        (3600, "1 h"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_a_terminal_it_is_printed_once() -> None:
    result, asked = run()

    assert result.exit_code == 0, result.output
    assert asked == "/v1/fleet"
    assert result.output.startswith("MODEL")


def test_scripts_get_the_view_itself() -> None:
    result, _ = run("--json")

    assert FleetView.model_validate_json(result.output) == FleetView.model_validate(json.loads(result.output))
    assert len(result.output.splitlines()) == 1


def test_a_key_that_may_not_see_the_fleet_is_told_which_scope_it_needs() -> None:
    problem = {"code": "missing_scope", "detail": "This needs an API key with the scope admin.", "status": 403}
    body = json.dumps({"type": "about:blank", "title": "No", "instance": "req_1", **problem}).encode()

    result, _ = run("--once", answer=Answer(403, body, {"Content-Type": "application/problem+json"}))

    assert result.exit_code == 2
    assert "missing_scope: This needs an API key with the scope admin." in result.output


def test_it_shows_a_running_stack_anew_until_it_is_interrupted(running_stack: StackLine) -> None:
    master, slave = pty.openpty()
    top = subprocess.Popen(
        [sys.executable, "-m", "maskfleet", "top", "--every", "0.5"],
        env=os.environ
        | {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": running_stack.api_key}
        | {"TERM": "xterm", "COLUMNS": "200", "LINES": "40"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        # A shell's background job, as the suite may be, inherits SIGINT as ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(slave)
    seen = b""
    try:
        while seen.count(b"WORKER") < 3:
            assert select.select([master], [], [], 60)[0], seen
            seen += os.read(master, 65536)
        top.send_signal(2)
        while top.poll() is None and select.select([master], [], [], 60)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
        assert top.wait(60) == 0
    finally:
        top.kill()
        top.wait()
        os.close(master)
    assert b"sam-demo" in seen
    assert seen.endswith(b"\x1b[?1049l\x1b[?25h") or b"\x1b[?1049l" in seen  # the screen from before is back
