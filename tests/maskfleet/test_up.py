"""``maskfleet up``, run as a user would: it starts, keeps running, shuts down completely, and finds its data again.

A stack takes seconds to start, so the tests of this file share one; the last of them end it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import requests
from PIL import Image

from maskfleet import Client
from maskfleet.data import DEMO_PHOTO
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.folder import StackPorts
from maskfleet.stack.readiness import LogSince, StackFailed
from tests.waiting import wait_until

READY_S = 120.0
USUAL = StackPorts()
SHORT = {"mode": "box", "prompts": [{"box": [8, 8, 40, 40]}]}
#: Takes minutes on any machine.
LONG = {"mode": "everything", "params": {"points_per_crop": 128, "crops_n_layers": 2, "points_per_batch": 4}}


@dataclass
class Up:
    """A ``maskfleet up --json`` under test."""

    process: subprocess.Popen[str]
    errors: Path
    line: dict[str, Any]  # Any: it is JSON

    def pids(self) -> set[int]:
        return {pid for pid in self.line["pids"].values() if pid is not None}

    def family(self) -> list[psutil.Process]:
        """Return all its descendant processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def get(self, path: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.line['api_key']}"}
        return requests.get(f"{self.line['api_url']}{path}", headers=headers, timeout=10)

    def settings(self) -> SharedSettings:
        names = ("redis_url", "s3_endpoint", "s3_access_key", "s3_secret_key", "bucket")
        return SharedSettings(**{name: self.line[name] for name in names})


class Starter:
    """Start stacks, and end whatever is left of them after the tests."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "errors"
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str | Path, **settings: str) -> subprocess.Popen[str]:
        with self._errors.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "maskfleet", "up", *map(str, arguments)],
                env={**os.environ, **settings},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._started.append(process)
        return process

    def up(self, data: Path, *arguments: str, **settings: str) -> Up:
        process = self.run("--json", "--data", data, *arguments, **settings)
        assert process.stdout
        line = process.stdout.readline()
        assert line, self._errors.read_text()
        return Up(process, self._errors, json.loads(line))

    def told(self, data: Path) -> tuple[Up, str]:
        """Start a stack that talks to people; return it and what it says until it is ready."""
        process = self.run("--data", data)
        assert process.stdout
        said = ""
        while not said.endswith("\nCtrl-C stops it.\n"):
            line = process.stdout.readline()
            assert line, self._errors.read_text()
            said += line
        return Up(process, self._errors, json.loads((data / "stack.json").read_text())), said

    def refused(self, *arguments: str | Path, **settings: str) -> str:
        """Return what it says when it fails to start."""
        process = self.run(*arguments, **settings)
        assert process.wait(READY_S) == 1
        return self._errors.read_text()

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    starter = Starter(tmp_path_factory.mktemp("starter"))
    yield starter
    starter.end()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "data"


@pytest.fixture(scope="module")
def stack(start: Starter, data: Path) -> Up:
    """A stack that started while the usual ports were taken."""
    with ExitStack() as taken:
        for port in (USUAL.api, USUAL.redis, USUAL.s3):
            with suppress(OSError):  # then another program has it, which works as well
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
        return start.up(data)


def test_a_ready_stack_says_where_all_of_it_is_and_all_of_it_answers(stack: Up, data: Path) -> None:
    assert set(stack.line) == {
        *("api_url", "api_key", "redis_url", "s3_endpoint", "s3_access_key", "s3_secret_key", "bucket", "data", "pids")
    }
    assert set(stack.line["pids"]) == {"api", "worker", "courier", "redis", "s3"}
    assert all(psutil.Process(pid).is_running() for pid in stack.pids())
    assert stack.line["data"] == str(data)
    assert stack.get("/ready").status_code == 200
    assert stack.get("/v1/jobs").status_code == 200
    Store(stack.settings()).ping()
    Store(stack.settings().model_copy(update={"bucket": "photos"})).ping()
    assert [worker.model for worker in worker_registry_of(stack).workers()] == ["sam-demo"]


def test_taken_ports_are_left_alone(stack: Up) -> None:
    urls = (stack.line["api_url"], stack.line["redis_url"], stack.line["s3_endpoint"])

    assert not {str(USUAL.api), str(USUAL.redis), str(USUAL.s3)} & {
        url.removesuffix("/0").rpartition(":")[2] for url in urls
    }


def test_what_a_stack_writes_can_be_read_by_its_owner_alone(stack: Up, data: Path) -> None:
    Store(stack.settings()).put("uploads/local/an-image", bytes(100_000), "image/png")

    found = {path: path.lstat().st_mode for path in (data, *data.rglob("*"))}

    assert {"keys.json", "stack.json", "api.log", "s3.log", "appendonlydir"} <= {path.name for path in found}
    assert any(path.suffix == ".dat" for path in found)
    # SeaweedFS gives its .vif files, which describe a volume, a mode of its own; their folder keeps others out.
    opened = {path for path, mode in found.items() if mode & 0o077}
    assert {path for path in opened if path.suffix != ".vif"} == set()
    assert {stat.S_IMODE(mode) for path, mode in found.items() if path not in opened} <= {0o600, 0o700}


def test_no_process_of_a_stack_has_a_secret_among_its_arguments(stack: Up, data: Path) -> None:
    keys = json.loads((data / "keys.json").read_text())
    processes = [psutil.Process(stack.process.pid), *stack.family()]

    shown = [
        argument for process in processes for argument in process.cmdline() for key in keys.values() if key in argument
    ]

    assert len(keys) >= 4
    assert len(processes) >= 6
    assert shown == []


def test_a_second_stack_on_the_same_folder_is_refused(stack: Up, data: Path, start: Starter) -> None:
    assert "already running on" in start.refused("--data", data)
    assert stack.get("/ready").status_code == 200


def test_a_program_that_dies_is_started_again_and_said_so(stack: Up, data: Path) -> None:
    os.kill(stack.line["pids"]["courier"], signal.SIGKILL)

    again = wait_until(lambda: other_courier(data, stack.line["pids"]["courier"]))

    assert psutil.Process(again).is_running()
    events = [json.loads(line) for line in stack.errors.read_text().splitlines()]
    assert ("child_ended", "courier") in [(event["event"], event.get("child")) for event in events]


def test_redis_that_dies_comes_back_with_its_data_on_its_port(stack: Up) -> None:
    client = connect(stack.settings())
    client.set("kept", "yes")
    os.kill(stack.line["pids"]["redis"], signal.SIGKILL)

    def kept() -> str:
        with suppress(redis.RedisError):
            return str(client.get("kept"))
        return ""

    # Redis first: a response of /ready may be a second old, from before the kill.
    wait_until(lambda: kept() == "yes")
    wait_until(lambda: stack.get("/ready").status_code == 200)


def test_the_workers_health_check_sees_the_worker_of_this_stack_alone(stack: Up, redis_url: str) -> None:
    def healthy(url: str) -> bool:
        environment = {**os.environ, "MASKFLEET_REDIS_URL": url}
        command = [sys.executable, "-m", "maskfleet.worker.node.health"]
        return subprocess.run(command, env=environment, check=False).returncode == 0

    assert healthy(stack.line["redis_url"])
    assert not healthy(redis_url)


def test_sigterm_ends_all_within_15_s_and_the_next_up_finds_jobs_results_and_keys(
    stack: Up, data: Path, start: Starter
) -> None:
    job = submit(stack, SHORT)
    wait_until(lambda: stack.get(f"/v1/jobs/{job}").json()["status"] == "succeeded", 60)
    busy = submit(stack, LONG)
    wait_until(lambda: stack.get(f"/v1/jobs/{busy}").json()["status"] == "processing")
    family = stack.family()
    assert {child.pid for child in family} >= stack.pids() - {
        stack.line["pids"][name]
        for name in ("courier", "redis")  # killed by the tests above
    }

    begin = time.monotonic()
    stack.process.terminate()

    assert stack.process.wait(15) == 0
    assert time.monotonic() - begin < 15
    assert not [child for child in family if is_alive(child)]
    assert not (data / "stack.json").exists()
    again, said = start.told(data)
    check_what_people_are_told(again, said)
    assert again.get(f"/v1/jobs/{job}").json()["status"] == "succeeded"
    assert again.get(f"/v1/jobs/{job}/result").status_code == 200
    assert again.get(f"/v1/jobs/{busy}").json()["status"] in ("queued", "processing")
    kept = ("api_url", "api_key", "redis_url", "s3_endpoint", "s3_access_key", "s3_secret_key", "data")
    assert [again.line[name] for name in kept] == [stack.line[name] for name in kept]
    check_that_a_kill_leaves_no_orphans(again)


def check_what_people_are_told(stack: Up, said: str) -> None:
    """Part of the test above, to save starting one more stack: a line for each part as it comes up, and what to do."""
    line = stack.line
    began, *lines = said.splitlines()
    assert began == f"Starting maskfleet, with its data in {line['data']}"
    assert [text.split()[0] for text in lines[:6]] == ["Redis", "S3", "API", "courier", "worker", "worker"]
    assert f"\n  {line['api_url']}/#key={line['api_key']}\n" in said
    copied = lines.index(f"  export MASKFLEET_API_URL={line['api_url']}")
    assert lines[copied + 1] == f"  export MASKFLEET_API_KEY={line['api_key']}"
    assert lines[copied + 2] == f"  {sys.executable} -m maskfleet submit {DEMO_PHOTO} --out masks"
    assert f"s3://photos/… in the S3 at {line['s3_endpoint']}, whose keys are in {line['data']}/keys.json" in said
    assert "no good for photographs" in said


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that has exited may be waiting to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def check_that_a_kill_leaves_no_orphans(stack: Up) -> None:
    """Part of the test above, to save starting one more stack."""
    family = stack.family()
    assert len(family) > len(stack.pids())

    stack.process.kill()
    stack.process.wait()

    wait_until(lambda: not [child for child in family if is_alive(child)])


def test_what_the_settings_give_is_used_and_not_started(
    start: Starter,
    tmp_path: Path,
    repository: Path,
    shared_fields: dict[str, str],
    ledger: Ledger,
    worker_registry: WorkerRegistry,
) -> None:
    given = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}
    model = shutil.copytree(repository / "models" / "sam-demo", tmp_path / "sam-other")

    stack = start.up(tmp_path / "data", MASKFLEET_API_KEYS="someone:their-own-key", MASKFLEET_MODEL=str(model), **given)

    assert stack.line["pids"]["redis"] is None
    assert stack.line["pids"]["s3"] is None
    assert {name: stack.line[name] for name in shared_fields} == shared_fields
    assert stack.line["api_key"] == "their-own-key"
    assert stack.get("/v1/jobs").status_code == 200
    assert [worker.model for worker in worker_registry.workers()] == ["sam-other"]
    with Client(stack.line["api_url"], stack.line["api_key"]) as client:
        assert list(client.models()) == ["sam-other"]
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait(15) == 0
    assert connect(stack.settings()).ping()


def test_a_taken_port_that_was_asked_for_is_refused(start: Starter, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert f"Port {port} is taken" in start.refused("--data", tmp_path, "--port", str(port))


def test_a_model_folder_that_is_not_there_is_refused(start: Starter, tmp_path: Path) -> None:
    answer = start.refused("--data", tmp_path, "--model", "/nowhere/sam-huge")

    assert "There is no folder /nowhere/sam-huge" in answer


def test_a_model_that_the_worker_cannot_load_fails_the_start(tmp_path: Path) -> None:
    log_path = tmp_path / "worker.log"
    before = b'{"event": "model_not_loaded", "model": "older", "detail": "in an earlier run"}\n'
    log_path.write_bytes(before)
    log = LogSince(log_path)
    log.raise_load_failure()

    log_path.write_bytes(
        before + b'warning\n{"event": "model_not_loaded", "model": "a/sam", "detail": "No weights."}\n'
    )

    with pytest.raises(StackFailed, match=r"The model a/sam cannot be loaded: No weights\."):
        log.raise_load_failure()


def test_a_model_that_fails_its_test_fails_the_start_and_another_fault_does_not(tmp_path: Path) -> None:
    log_path = tmp_path / "worker.log"
    log_path.touch()
    log = LogSince(log_path)
    log_path.write_text('{"event": "node_withdrawn", "code": "store_misconfigured", "detail": "Its bucket."}\n')
    log.raise_load_failure()

    with log_path.open("a") as lines:
        lines.write('{"event": "node_withdrawn", "code": "model_wrong", "detail": "Other masks."}\n')

    with pytest.raises(StackFailed, match=r"The model fails its test\. Other masks\."):
        log.raise_load_failure()


def test_a_store_that_was_given_but_lacks_the_bucket_is_named(
    start: Starter, tmp_path: Path, store_fields: dict[str, str]
) -> None:
    given = {f"MASKFLEET_{name.upper()}": value for name, value in store_fields.items()}

    answer = start.refused("--data", tmp_path, **{**given, "MASKFLEET_BUCKET": "missing"})

    assert "Cannot access the bucket 'missing'" in answer


def test_a_redis_that_was_given_but_does_not_answer_is_named(start: Starter, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"

        assert "MASKFLEET_REDIS_URL" in start.refused("--data", tmp_path, MASKFLEET_REDIS_URL=url)


def worker_registry_of(stack: Up) -> WorkerRegistry:
    return WorkerRegistry(connect(stack.settings()))


def other_courier(data: Path, before: int) -> int | None:
    now = json.loads((data / "stack.json").read_text())["pids"]["courier"]
    return int(now) if now != before else None


def submit(stack: Up, job: dict[str, Any]) -> str:
    """Send a job on a small photo; return its id."""
    photo = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(photo, "PNG")
    job = {**job, "image": {"base64": base64.b64encode(photo.getvalue()).decode()}}
    headers = {"Authorization": f"Bearer {stack.line['api_key']}"}
    answer = requests.post(f"{stack.line['api_url']}/v1/jobs", json=job, headers=headers, timeout=10)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])
