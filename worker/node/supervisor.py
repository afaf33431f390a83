"""Child processes that die with their parent, and are restarted if they exit by themselves."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType

from maskfleet.jobs.logs import get_logger

logger = get_logger()

#: linux/prctl.h
_PR_SET_PDEATHSIG = 1
#: A child that exited is restarted after the first wait, doubled each time up to the longest.
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
#: A child that lived this long counts as healthy; its next wait is the first one again.
SOUND_AFTER_S = 60.0


class KeptChild:
    """A child that is restarted, with growing delays, when it exits by itself."""

    def __init__(
        self,
        name: str,
        start: Callable[[], subprocess.Popen[bytes]],
        running: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Start it; or adopt ``running``, which was started before."""
        self.name = name
        self._start = start
        self._wait_s = FIRST_WAIT_S
        self._due = 0.0
        self._process = running or start()
        self._began = time.monotonic()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that runs now, or ran last."""
        return self._process

    def look(self) -> bool:
        """Check whether it has exited, and restart it when that is due; return True if so.  To be called often."""
        if self._process.poll() is None:
            return False
        now = time.monotonic()
        if not self._due:
            self._wait_s = FIRST_WAIT_S if now - self._began > SOUND_AFTER_S else self._wait_s
            self._due = now + self._wait_s
            logger.error("child_ended", child=self.name, status=self._process.returncode, restart_in_s=self._wait_s)
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            kill_child(self._process)
            return False
        if now < self._due:
            return False
        self._process = self._start()
        self._began = now
        self._due = 0.0
        logger.warning("child_restarted", child=self.name, pid=self._process.pid)
        return True


class StopSignals:
    """Counts SIGTERM and SIGINT from its creation on; the handler does nothing that could deadlock."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  the signature is signal's
        self.count += 1


def start_child(
    command: Sequence[str], *, env: Mapping[str, str], log: Path | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in its own session; on Linux it is killed when this process dies in any way.

    Its output is appended to ``log``, or goes where this process's goes.
    """
    before_exec = _death_with_parent()

    def start() -> subprocess.Popen[bytes]:
        output = log.open("ab") if log else None
        try:
            return subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=before_exec,  # it only calls into libc, which is already loaded
            )
        finally:
            if output:
                output.close()

    return _nursery().submit(start).result()


def stop_child(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Ask a child to exit; after ``grace_s`` kill it with its whole process group."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    kill_child(process)


def kill_child(process: subprocess.Popen[bytes]) -> None:
    """Kill a child's process group: the child, and whatever it left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def _nursery() -> ThreadPoolExecutor:
    """Return the thread that starts all children.

    Linux sends the death signal when the *thread* that forked exits; this one lives as long as the process.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="nursery")


def _death_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return die_with_parent
