"""``maskfleet doctor``: each check passes where all is well; where not, it fails and says how to mend that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from maskfleet.cli.main import main
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.storage import Store
from maskfleet.stack.process import StackLine
from maskfleet.stack.servers import free_port
from tests.maskfleet.scripted_server import Answer, ScriptedServer

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
KEY = "key-of-the-apiary"

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(redis_client: redis.Redis, shared_fields: dict[str, str], demo_model: str) -> dict[str, str]:
    """The environment of a service in which all is well, but for workers, of which there are none."""
    fields = {
        **shared_fields,
        "model": demo_model,
        "bind": f"127.0.0.1:{free_port()}",
        "api_keys": f"apiary:{KEY}",
        "webhook_master_secrets": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz",
    }
    return {f"MASKFLEET_{name.upper()}": value for name, value in fields.items()}


@pytest.fixture
def doctor(settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Run the command in an empty folder with these settings and others; return what it found, by check."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **others: str) -> dict[str, Any]:
        env = settings | {f"MASKFLEET_{name.upper()}": value for name, value in others.items()}
        result = CliRunner().invoke(main, ["doctor", "--json", *arguments], env=env, catch_exceptions=False)
        return findings(result.stdout, result.exit_code)

    return run


def findings(stdout: str, status: int) -> dict[str, Any]:
    """Return the worst finding of each check; no finding is without its mending, and none shows a secret."""
    found = json.loads(stdout)
    assert found["ok"] is (status == 0)
    assert not any(secret in stdout for secret in (KEY, "whsec_", "a-wrong-secret"))
    order = ("ok", "skipped", "warning", "failed")
    for one in found["checks"]:
        assert one["detail"]
        assert bool(one["mend"]) is (one["state"] in ("warning", "failed")), one
    assert found["ok"] is all(one["state"] != "failed" for one in found["checks"])
    return {one["check"]: one for one in sorted(found["checks"], key=lambda one: order.index(one["state"]))}


def test_where_all_is_well_nothing_fails(
    doctor: Doctor, worker_registry: WorkerRegistry, store: Store, demo_model: str
) -> None:
    worker_registry.announce(WorkerSeen("sam-cpu@host", "sam-demo", "cpu", 1, 0))

    found = doctor()

    assert found.keys() == {
        *("versions", "settings", "redis", "ledger", "s3", "clock", "workers"),
        *("keys", "ports", "device", "model", "disk"),
    }
    failed = {name: one for name, one in found.items() if one["state"] == "failed"}
    assert failed == {}
    assert found["keys"]["detail"] == "1 API key(s) in MASKFLEET_API_KEYS."
    assert list(store.listed("results/self-test/")) == []


@pytest.mark.parametrize(
    ("check", "wrong", "says", "mend"),
    [
        ("redis", {"redis_url": "redis://{redis}:1/0"}, "not_responding", "Start Redis"),
        ("redis", {"redis_url": "redis://api:a-wrong-secret@{redis}/0"}, "credentials", "user and password"),
        ("redis", {"redis_url": "http://a:a-wrong-secret@here"}, "no URL of Redis.", "Write redis://"),
        ("redis", {"redis_url": "redis://api:a-wrong-secret/with-a-slash@{redis}/0"}, "no URL of Redis", "%2F"),
        ("s3", {"s3_secret_key": "a-wrong-secret"}, "cannot be used", "MASKFLEET_S3_SECRET_KEY"),
        ("s3", {"s3_access_key": "nobody"}, "cannot be used", "MASKFLEET_S3_ACCESS_KEY"),
        ("s3", {"bucket": "not-there-at-all"}, "not-there-at-all", "MASKFLEET_BUCKET"),
        ("s3", {"s3_endpoint": "http://127.0.0.1:1"}, "does not answer", "MASKFLEET_S3_ENDPOINT"),
        ("s3", {"s3_endpoint": "no url", "allowed_buckets": "photos"}, "is no URL", "http://host:9000"),
        ("s3", {"allowed_buckets": "not-there-either"}, "'not-there-either'", "MASKFLEET_ALLOWED_BUCKETS"),
        ("settings", {"max_attempts": "a-wrong-secret"}, "MASKFLEET_MAX_ATTEMPTS: ", "environment variables"),
        ("model", {"model": "/no/such/folder"}, "no folder /no/such/folder", "MASKFLEET_MODEL"),
        ("model", {"model": "{tmp}"}, "lacks config.json", "MASKFLEET_MODEL"),
        ("device", {"device": "cuda"}, "", "MASKFLEET_DEVICE=cpu"),
        ("ports", {"bind": "203.0.113.7:8000"}, "cannot be listened on", "MASKFLEET_BIND"),
    ],
)
def test_what_is_wrong_is_found_with_how_to_mend_it(
    doctor: Doctor, redis_url: str, tmp_path: Path, check: str, wrong: dict[str, str], says: str, mend: str
) -> None:
    if check in ("model", "device"):
        pytest.importorskip("torch")
    place = {"redis": redis_url.removeprefix("redis://").removesuffix("/0"), "tmp": str(tmp_path)}
    if ":1/0" in str(wrong):
        place["redis"] = "127.0.0.1"

    found = doctor(**{name: value.format(**place) for name, value in wrong.items()})

    assert found[check]["state"] == ("warning" if [*wrong] == ["allowed_buckets"] else "failed")
    assert says in found[check]["detail"]
    assert mend in found[check]["mend"]


def test_what_depends_on_redis_is_skipped_without_it(doctor: Doctor) -> None:
    found = doctor(redis_url="redis://127.0.0.1:1/0", api_keys="")

    assert {name for name, one in found.items() if one["state"] == "skipped"} >= {"ledger", "workers"}
    assert found["clock"]["state"] == "ok"  # S3 tells the time, too


def test_a_port_that_another_program_has_is_told_from_one_that_is_ours(doctor: Doctor) -> None:
    with ScriptedServer(Answer(200, b"{}", {"Content-Type": "application/json"})) as other:
        port = other.url.rpartition(":")[2]

        found = doctor(bind=f"127.0.0.1:{port}")

    assert found["ports"]["detail"] == f"127.0.0.1:{port}, for the API, is taken by another program."
    assert "MASKFLEET_BIND" in found["ports"]["mend"]


def test_no_key_at_all_is_found_and_one_in_redis_suffices(doctor: Doctor, redis_client: redis.Redis) -> None:
    without = doctor(api_keys="")
    KeyStore(redis_client).create("apiary", [Scope.READ])

    with_one = doctor(api_keys="", webhook_master_secrets="")

    assert (without["keys"]["state"], with_one["keys"]["state"]) == ("failed", "warning")
    assert "maskfleet keys create" in without["keys"]["mend"]
    assert "MASKFLEET_WEBHOOK_MASTER_SECRETS" in with_one["keys"]["detail"]


def test_a_ledger_of_another_version_is_found(doctor: Doctor, redis_client: redis.Redis) -> None:
    redis_client.set("mf:schema", 1)
    older = doctor()
    redis_client.set("mf:schema", 99)

    newer = doctor()

    assert "maskfleet ledger upgrade" in older["ledger"]["mend"]
    assert newer["ledger"]["state"] == "failed"
    assert "99" in newer["ledger"]["detail"]


def test_a_worker_that_has_withdrawn_is_shown_with_its_reason(doctor: Doctor, worker_registry: WorkerRegistry) -> None:
    worker_registry.announce(WorkerSeen("sam-cpu@host", "sam-demo", "cpu", 1, 0, fault="model_wrong: Its masks."))

    found = doctor()

    assert "sam-cpu@host has withdrawn: model_wrong" in found["workers"]["detail"]
    assert "A model that is wrong" in found["workers"]["mend"]


def test_jobs_that_need_no_model_and_that_no_worker_takes_are_found(
    doctor: Doctor, worker_registry: WorkerRegistry
) -> None:
    worker_registry.announce(WorkerSeen("sam-cpu@host", "sam-demo", "cpu", 1, 0))
    nobody = doctor()["workers"]

    worker_registry.announce(WorkerSeen("sam-cpu@host", "sam-demo", "cpu", 1, 0, outputs=True))

    assert (nobody["state"], nobody["detail"]) == (
        "warning",
        "No worker takes the jobs that need no model; exports wait.",
    )
    assert "MASKFLEET_SERVE_OUTPUTS" in nobody["mend"]
    assert "need no model" not in doctor()["workers"]["detail"]


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
@pytest.mark.parametrize("off", ["+2m", "-2h"])
def test_a_clock_that_is_off_is_found(settings: dict[str, str], tmp_path: Path, off: str) -> None:
    """Beyond a quarter of an hour the store refuses what is signed; then Redis tells."""
    ran = subprocess.run(
        [sys.executable, "-m", "maskfleet", "doctor", "--json"],
        cwd=tmp_path,
        env=os.environ | settings | {"LD_PRELOAD": str(FAKETIME), "FAKETIME": off, "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ran.stdout, ran.stderr
    clock = findings(ran.stdout, ran.returncode)["clock"]
    assert clock["state"] == "failed"
    assert "NTP" in clock["mend"]


@pytest.mark.parametrize("where", [[], ["--data", "elsewhere"]])
def test_it_is_readable_too_and_says_where_no_stack_runs(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main, ["doctor", *where], env=settings)

    lines = result.stdout.splitlines()
    if where:
        assert result.exit_code == 1
        assert "No stack runs from elsewhere." in result.stdout
        assert "To mend it: Start one with `maskfleet up --data elsewhere`" in result.stdout
        assert lines[-1] == "1 failed: settings."
    else:
        assert result.exit_code == 0
        assert lines[0].startswith("ok       versions  maskfleet ")
        assert lines[-1] == "Nothing failed."


def test_the_stack_of_a_folder_is_examined_with_its_own_servers_and_model(
    running_stack: StackLine, doctor: Doctor, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*settings]:
        settings.pop(name)

    found = doctor("--data", running_stack.data)

    assert {name: one["detail"] for name, one in found.items() if one["state"] in ("failed", "warning")} == {}
    assert found["keys"]["detail"] == "The API accepts the stack's key."
    assert "sam-demo" in found["workers"]["detail"]
    assert "sam-demo is on this machine" in found["model"]["detail"]
    assert found["ports"]["detail"].endswith("for the API; it is ready.")
