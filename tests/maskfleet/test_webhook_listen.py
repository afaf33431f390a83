"""``maskfleet webhook listen``, run as a developer would, with real and forged webhooks posted to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import requests

from maskfleet.stack.process import StackLine
from tests.conftest import WEBHOOK_SECRET
from tests.maskfleet.conftest import Cli
from tests.maskfleet.test_webhooks import BODY, OTHER_SECRET, signed
from tests.waiting import wait_until


class Listening:
    """The running command and its output."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], settings: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "maskfleet", "webhook", "listen", "--port", "0", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = wait_until(lambda: re.search(r"http://[0-9.:]+/", self.text), 60)[0]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.append(line.decode())

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        return requests.post(self.url, data=body, headers=headers, timeout=30).status_code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


Listen = Callable[..., Listening]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    """Start the command in an empty folder; it ends with the test."""
    started: list[Listening] = []

    def start(*arguments: str, **settings: str) -> Listening:
        started.append(Listening(tmp_path, arguments, settings))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_what_arrives_is_verified_shown_and_answered(listen: Listen) -> None:
    listening = listen("--secret", OTHER_SECRET, "--secret", WEBHOOK_SECRET)

    answers = [
        listening.post(BODY, signed()),
        listening.post(BODY, signed()),
        listening.post(BODY.replace(b'"masks":3', b'"masks":4'), {**signed(), "Webhook-Id": "dlv_2"}),
    ]
    wait_until(lambda: "dlv_2" in listening.text and listening.text.count("responded") == 3)

    assert answers == [204, 204, 400]
    first, second, third = re.split(r"(?m)^\d\d:\d\d:\d\d UTC  ", listening.text)[1:]
    assert first.startswith("job.succeeded  dlv_1\n  valid; signed at 20")
    assert json.loads(first.partition("responded 204\n")[2]) == json.loads(BODY)
    assert '\n    "data": {\n' in first
    assert second.startswith("job.succeeded  dlv_1, received for the 2nd time\n  valid")
    assert third.startswith("job.succeeded  dlv_2\n  invalid: wrong_signature: ")
    assert '"masks": 4' in third
    assert listening.end() == 0
    assert "Traceback" not in listening.text


def test_failure_can_be_tried_out(listen: Listen) -> None:
    listening = listen("--secret", WEBHOOK_SECRET, "--answer", "503")

    answers = [listening.post(BODY, signed()), listening.post(b"forged", {})]
    wait_until(lambda: listening.text.count("responded 503") == 2)

    assert answers == [503, 503]
    assert "  valid; " in listening.text
    assert "  invalid: missing_header: The header webhook-id is missing.; signed at an unknown time" in listening.text


def test_secrets_come_from_the_environment(listen: Listen) -> None:
    listening = listen(MASKFLEET_LISTEN_SECRETS=f"{OTHER_SECRET},{WEBHOOK_SECRET}")

    assert listening.post(BODY, signed()) == 204
    assert "verified with 2 secrets" in listening.text
    assert WEBHOOK_SECRET not in listening.text


def test_a_local_stack_is_asked_for_its_tenants_secret(
    listen: Listen, tmp_path: Path, running_stack: StackLine
) -> None:
    (tmp_path / ".maskfleet").mkdir()
    (tmp_path / ".maskfleet" / "stack.json").write_text(running_stack.model_dump_json())

    listening = listen()

    assert listening.post(BODY, signed()) == 204
    assert listening.post(BODY, signed(secret=OTHER_SECRET)) == 400
    assert "verified with 1 secret." in listening.text
    assert WEBHOOK_SECRET not in listening.text


def test_a_server_that_does_not_give_the_secret_is_told_before_anything_is_believed(
    cli: Cli, running_stack: StackLine
) -> None:
    answer = cli("webhook", "listen", "--port", "0", "--api-url", running_stack.api_url, "--api-key", "wrong")

    assert answer.returncode == 2
    assert "unknown_api_key: " in answer.stderr


def test_without_a_secret_it_says_that_nothing_is_verified(listen: Listen) -> None:
    listening = listen()

    assert listening.post(BODY, {}) == 204
    wait_until(lambda: "responded" in listening.text)
    assert "not verified: no --secret given" in listening.text
    assert "not verified (no secret)" in listening.text


def test_a_signed_event_that_is_newer_than_this_program_is_shown_and_taken(listen: Listen) -> None:
    body = b'{"type": "job.painted", "timestamp": "2030-01-01T00:00:00Z", "data": {}}'
    listening = listen("--secret", WEBHOOK_SECRET)

    assert listening.post(body, signed(body)) == 204
    wait_until(lambda: "responded" in listening.text)
    assert "job.painted" in listening.text
    assert "valid, but newer than this program; " in listening.text


def test_nothing_that_is_posted_is_obeyed_by_the_terminal_or_breaks_it(listen: Listen) -> None:
    hostile = [
        b"\x1b[2J\x1b]0;gone\x07",
        b'"\xc2\x9b2J"',
        b"\xff\x00\r",
        b"[" * 60_000,
        b'{"type": "a\\n  valid; signed"}',
    ]
    listening = listen("--secret", WEBHOOK_SECRET)

    for body in [*hostile, b"a\n  valid; signed"]:
        assert listening.post(body, {"Webhook-Id": "x\x1b[2J"}) == 400
    wait_until(lambda: listening.text.count("responded 400") == len(hostile) + 1)

    assert not {"\x1b", "\x07", "\x9b", "\x00", "\r"} & set(listening.text)
    assert "\n  valid;" not in listening.text
    assert "Traceback" not in listening.text


def test_a_port_that_is_taken_and_a_secret_that_is_none_are_told(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = cli("webhook", "listen", "--port", str(port))
    wrong = cli("webhook", "listen", "--port", "0", "--secret", "whsec_!")

    assert (busy.returncode, "Use another --port" in busy.stderr) == (1, True)
    assert (wrong.returncode, "--secret" in wrong.stderr) == (2, True)
