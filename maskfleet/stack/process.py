"""``maskfleet up`` as a child process: start it, wait until it is ready, stop it, check that it is gone."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

#: The stack itself gives up after a quarter of an hour, time enough to download a large model from the hub.
READY_S = 930.0
#: The stack promises to end within 15 s of SIGTERM.
STOP_S = 20.0


class StackLine(BaseModel):
    """What ``maskfleet up --json`` prints once it is ready."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    api_url: str
    api_key: str
    redis_url: str
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    bucket: str
    data: str
    pids: dict[str, int | None]


class StackNotReady(Exception):
    """The stack exited, or was not ready in time; the message ends with its last log lines."""


class StackProcess:
    """A separate local stack that runs while its ``with`` lasts.

    It ignores the shell's settings except for the model, so it shares nothing with a service that the shell
    is configured for.
    """

    def __init__(self, data: Path, settings: Mapping[str, str] | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log = data / "up.log"
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "maskfleet", "up", "--json", "--data", str(data)],
                env={**kept, **(settings or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C goes to the parent alone, which then stops the stack in its own order.
                start_new_session=True,
            )
        try:
            self.line = self._read_line()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> tuple[str, ...]:
        """Stop the stack; return the names of its programs that still run (there should be none)."""
        self._end()
        deadline = time.monotonic() + 5
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return alive

    def _alive(self) -> tuple[str, ...]:
        return tuple(name for name, pid in self.line.pids.items() if pid is not None and _is_alive(pid))

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read_line(self) -> StackLine:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker: it is a PIPE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(READY_S) else b""
        if not line:
            ended = self._process.poll() is not None
            why = "exited during startup" if ended else f"was not ready within {READY_S:g} s"
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise StackNotReady(f"The local stack {why}.\n{tail}")
        return StackLine.model_validate_json(line)


def _is_setting(name: str) -> bool:
    return name.startswith("MASKFLEET_") and name != "MASKFLEET_MODEL"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
