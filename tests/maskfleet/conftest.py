"""Fixtures for tests that use a whole local stack."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskfleet import Client
from maskfleet.stack.process import StackLine
from maskfleet.stack.receiver import Receiver
from tests.conftest import WEBHOOK_SECRET

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def client(running_stack: StackLine) -> Iterator[Client]:
    with Client(running_stack.api_url, running_stack.api_key) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(WEBHOOK_SECRET) as receiver:
        yield receiver


@pytest.fixture(scope="session")
def coins(repository: Path) -> Path:
    return repository / "examples" / "coins.png"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run a maskfleet command as a user would, in an empty folder; settings as keywords."""

    def run(*arguments: str | Path, timeout_s: float = 120, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "maskfleet", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
