"""A ledger of an earlier version: each program refuses it and says what to run, and running that helps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from maskfleet.jobs.ledger.version import SCHEMA
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.readiness import StackFailed, check_redis, upgrade_ledger
from tests.conftest import WEBHOOK_MASTER
from tests.jobs.full_ledger import restore
from tests.jobs.test_schema import EARLIER
from tests.maskfleet.conftest import Cli

PROGRAMS = {
    "api": ("-m", "maskfleet", "api"),
    "worker": ("-m", "maskfleet.worker"),
    "courier": ("-m", "maskfleet", "courier"),
    "keys": ("-m", "maskfleet", "keys", "list"),
    "sweep": ("-m", "maskfleet", "sweep"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_does_not_start_on_an_earlier_ledger_and_says_what_to_run(
    program: str, redis_client: redis.Redis, shared_fields: dict[str, str], tmp_path: Path
) -> None:
    restore(redis_client, EARLIER[0])
    settings = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}

    ended = subprocess.run(
        [sys.executable, *PROGRAMS[program]],
        env={
            **os.environ,
            **settings,
            "MASKFLEET_WEBHOOK_MASTER_SECRETS": WEBHOOK_MASTER,
            "MASKFLEET_BIND": "127.0.0.1:0",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 1
    assert f"The ledger in Redis has version 0; this program needs {SCHEMA}. Run `maskfleet ledger upgrade`" in (
        ended.stderr
    )
    assert "Traceback" not in ended.stderr


def test_an_upgrade_is_told_made_and_made_once(cli: Cli, redis_client: redis.Redis, redis_url: str) -> None:
    restore(redis_client, EARLIER[0])

    told, made, again = (
        cli("ledger", "upgrade", *options, MASKFLEET_REDIS_URL=redis_url) for options in (("--dry-run",), (), ())
    )

    assert [line[:17] for line in told.stdout.splitlines()] == [f"to do: version {n}," for n in range(1, SCHEMA + 1)]
    assert made.stdout == f"{told.stdout.replace('to do:', 'done:')}{again.stdout}"
    assert again.stdout == f"The ledger is at version {SCHEMA}.\n"
    assert [run.returncode for run in (told, made, again)] == [0, 0, 0]
    assert redis_client.get("mf:schema") == str(SCHEMA)


def test_a_local_stack_upgrades_its_own_ledger_and_no_later_one(
    redis_client: redis.Redis, shared_fields: dict[str, str]
) -> None:
    settings = SharedSettings(**shared_fields)
    restore(redis_client, EARLIER[0])

    with pytest.raises(StackFailed, match="maskfleet ledger upgrade"):
        check_redis(settings)  # as for one given by MASKFLEET_REDIS_URL, which others may use
    upgrade_ledger(settings)
    check_redis(settings)
    redis_client.set("mf:schema", SCHEMA + 1)

    with pytest.raises(StackFailed, match="or a newer one"):
        upgrade_ledger(settings)
