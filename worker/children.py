"""Child processes that die with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

#: linux/prctl.h
_PR_SET_PDEATHSIG = 1


def start_child(
    command: Sequence[str], *, env: Mapping[str, str], log: Path | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; on Linux it is killed when this process dies, however it dies.

    Its output is added to ``log``, or goes where this process's goes.
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
                preexec_fn=before_exec,  # it only calls into libc, loaded beforehand
            )
        finally:
            if output:
                output.close()

    return _nursery().submit(start).result()


def stop_child(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Ask a child to end; after ``grace_s`` kill it with its whole process group."""
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
    """Make the thread that all children are started by.

    Linux sends the death signal when the *thread* that forked ends; this one lives as long as the process.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="nursery")


def _death_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return die_with_parent
