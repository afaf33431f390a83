"""Which server the commands talk to, and what they say when it cannot be reached."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from maskfleet import Client
from maskfleet.cli.main import main
from maskfleet.client.errors import Refused
from maskfleet.client.transport import Transport, checked_key, checked_url
from maskfleet.stack.servers import free_port
from tests.maskfleet.scripted_server import Answer, ScriptedServer
from tests.maskfleet.test_transport import JOB

FOUND = Answer(200, JOB.model_dump_json().encode())


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **settings: str) -> Result:
    return CliRunner().invoke(main, arguments, env=settings)


def stack_in(folder: Path, **members: str) -> Path:
    """Leave in a folder what a running stack leaves there; the process that runs is this one."""
    folder.mkdir()
    fields = {"s3_endpoint": "", "s3_access_key": "", "s3_secret_key": "", "bucket": "maskfleet"}
    line = {"api_url": "", "api_key": "mf_local", "redis_url": "", **fields, **members, "pids": {"api": os.getpid()}}
    (folder / "stack.json").write_text(json.dumps(line))
    return folder


@pytest.mark.parametrize("prefix", ["", "http://"])
def test_a_loopback_address_works_with_its_scheme_and_without(prefix: str) -> None:
    with ScriptedServer(FOUND) as server:
        answer = run("status", JOB.id, "--api-url", prefix + server.url.removeprefix("http://"))

    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout.startswith(JOB.id)


def test_the_address_that_up_prints_works_as_it_is() -> None:
    assert checked_url("http://127.0.0.1:8000/#key=mf_1") == "http://127.0.0.1:8000"


@pytest.mark.parametrize("url", ["maskfleet.example.com", "10.0.0.7:8000"])
def test_another_address_without_a_scheme_is_refused_with_the_two_that_may_be_meant(url: str) -> None:
    answer = run("status", JOB.id, "--api-url", url)

    assert answer.exit_code == 2
    assert answer.stderr == (
        f"invalid_api_url: The server's URL '{url}' has no scheme. Write https://{url}, or http://{url} if the server "
        "has no TLS.\n"
    )


@pytest.mark.parametrize(
    "url", ["ftp://a", "http://", "http://a:99999", "http://a b", "http://[::1", "[", "http://a/?x=1", "http://.a"]
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(Refused, match="invalid_api_url"):
        Transport(url, "key")


@pytest.mark.parametrize("key", ["mf_ключ", "mf_1\nmf_2"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key: str) -> None:
    answer = run("status", JOB.id, "--api-url", "http://127.0.0.1:1", "--api-key", key)

    assert answer.exit_code == 2
    assert answer.stderr.startswith("invalid_api_key: ")
    assert key not in answer.stderr


def test_white_space_around_a_key_is_dropped() -> None:
    assert checked_key(" mf_1\n") == "mf_1"


def test_a_server_that_is_down_is_named_before_the_first_wait() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    said: list[str] = []

    class Heard(Exception):
        pass

    def hear(message: str) -> None:
        said.append(message)
        raise Heard

    with Client(url, "key", on_retry=hear) as client, pytest.raises(Heard):
        client.get(JOB.id)

    (first,) = said
    assert first.startswith(f"No response from {url}/v1/jobs/{JOB.id}: connection refused. Trying again in ")
    assert first.endswith(" s (attempt 2 of 5).")


def test_a_command_says_on_stderr_that_it_tries_again() -> None:
    with ScriptedServer(Answer(hang_up=0), Answer(503), FOUND) as server:
        answer = run("status", JOB.id, "--api-url", server.url)

    assert answer.exit_code == 0
    first, second = answer.stderr.splitlines()
    assert first.startswith(f"No response from {server.url}/v1/jobs/{JOB.id}: the connection was closed. Trying again")
    assert second.startswith("The server responded 503 Service Unavailable. Trying again")


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (Answer(404, b"<html>", {"Content-Type": "text/html"}), 2, "http_404: {url} responded 404 Not Found, and did"),
        (
            Answer(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"}),
            2,
            "not_maskfleet: {url} responded with text/html instead of JSON.",
        ),
        (Answer(200, b"[]", {"Content-Type": "application/json"}), 2, "unreadable_answer: The server's JobView cannot"),
    ],
    ids=["no page", "a page", "other JSON"],
)
def test_a_server_that_is_no_maskfleet_is_named(sent: Answer, status: int, said: str) -> None:
    with ScriptedServer(sent) as server:
        answer = run("status", JOB.id, "--api-url", server.url)

    assert answer.exit_code == status
    assert answer.stderr.startswith(said.format(url=f"{server.url}/v1/jobs/{JOB.id}"))


def test_settings_that_cannot_be_used_are_named_without_their_values() -> None:
    answer = run("keys", "list", MASKFLEET_REDIS_URL="redis://a", MASKFLEET_MAX_IMAGE_PIXELS="a-secret")

    assert answer.exit_code == 2
    assert answer.stderr.startswith("invalid_settings: The environment has settings that cannot be used.\n")
    assert "\n  MASKFLEET_MAX_IMAGE_PIXELS: Input should be a valid integer" in answer.stderr
    assert "a-secret" not in answer.stderr


def test_a_stack_elsewhere_is_named_by_its_data_folder_and_comes_before_the_environment(tmp_path: Path) -> None:
    with ScriptedServer(FOUND) as server:
        data = stack_in(tmp_path / "elsewhere", api_url=server.url)
        environment = {"MASKFLEET_API_URL": "http://127.0.0.1:1", "MASKFLEET_API_KEY": "mf_other"}

        answer = run("status", JOB.id, "--data", str(data), **environment)

    assert answer.exit_code == 0, answer.stderr
    assert server.asked[0].headers["authorization"] == "Bearer mf_local"


@pytest.mark.parametrize("command", [("status", "job_1"), ("keys", "list"), ("ledger", "upgrade"), ("sweep",)])
def test_a_folder_without_a_stack_is_named(command: tuple[str, ...]) -> None:
    answer = run(*command, "--data", "nowhere")

    assert answer.exit_code == 2
    assert answer.stderr == "no_server: No stack is running from nowhere. Start it: maskfleet up --data nowhere\n"


def test_without_any_server_the_folder_that_was_looked_in_is_named(tmp_path: Path) -> None:
    answer = run("status", "job_1")

    assert f"no stack is running from {tmp_path / '.maskfleet'}" in answer.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "create", "--tenant", "apiary", "--scope", "jobs:read"),
        ("keys", "list"),
        ("keys", "revoke", "1"),
        ("ledger", "upgrade"),
        ("sweep",),
    ],
)
def test_a_redis_that_does_not_answer_is_named_without_its_password(command: tuple[str, ...]) -> None:
    port = free_port()

    answer = run(*command, MASKFLEET_REDIS_URL=f"redis://user:a-password@127.0.0.1:{port}/3")

    assert answer.exit_code == 1
    assert answer.stderr.startswith(
        f"queue_unavailable: The Redis at redis://127.0.0.1:{port}/3 cannot be used (not_responding). Is it running?"
    )
    assert "--data DIR" in answer.stderr
    assert "a-password" not in answer.stderr


def test_keys_are_made_in_the_stack_that_data_names(tmp_path: Path, redis_url: str, ledger: object) -> None:
    data = stack_in(tmp_path / "elsewhere", redis_url=redis_url)
    wanted = ("--tenant", "apiary", "--scope", "jobs:read", "--expires", "1d", "--json")

    made = run("keys", "create", *wanted, "--data", str(data), MASKFLEET_REDIS_URL="redis://127.0.0.1:1/0")
    listed = run("keys", "list", "--json", "--data", str(data))

    assert made.exit_code == 0, made.stderr
    key = json.loads(made.stdout)
    assert key.pop("key").startswith(f"mf_{key['id']}")
    assert (key["tenant"], key["scopes"]) == ("apiary", ["jobs:read"])
    assert [json.loads(line) for line in listed.stdout.splitlines()] == [key]
