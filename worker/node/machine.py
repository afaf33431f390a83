"""What this machine, or the container that this process runs in, has: cores and memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Count the cores that this process may use; torch counts all of the machine's and would contend for them.

    root: where /proc and /sys are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # the container's CPU limit, from cgroups v2
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


def available_memory(root: Path = ROOT) -> int | None:
    """Return how many bytes programs can still take on this machine or in this container; None if it does not say.

    What the kernel would give back under pressure, cached files, counts as available.
    """
    machine = _number(root / "proc/meminfo", r"^MemAvailable:\s+(\d+) kB")
    if machine is None:
        return None
    in_container = (_left_v2(root / "sys/fs/cgroup"), _left_v1(root / "sys/fs/cgroup/memory"))
    return min([machine * 1024, *(left for left in in_container if left is not None)])


def _left_v2(group: Path) -> int | None:
    cached = _number(group / "memory.stat", r"^inactive_file (\d+)$") or 0
    return _left(_number(group / "memory.max"), _number(group / "memory.current"), cached)


def _left_v1(group: Path) -> int | None:
    cached = _number(group / "memory.stat", r"^total_inactive_file (\d+)$") or 0
    return _left(_number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes"), cached)


def _left(limit: int | None, used: int | None, cached: int) -> int | None:
    return None if limit is None or used is None else max(0, limit - used + cached)


def _number(path: Path, pattern: str = r"^(\d+)$") -> int | None:
    """Return the number in a file; None without such a file, or if it holds no such number, as in "max"."""
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


class CpuClock:
    """How busy the machine's cores were since its creation, as the kernel counts it."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._began = self._ticks()

    def busy(self) -> float | None:
        """Return the share of the time, from 0 to 1, in which cores did not idle; None where that is not known."""
        now = self._ticks()
        if self._began is None or now is None or now[1] == self._began[1]:
            return None
        return 1 - (now[0] - self._began[0]) / (now[1] - self._began[1])

    def _ticks(self) -> tuple[int, int] | None:
        """Return the ticks of all cores since the start, idle and in all.  Source: proc(5), /proc/stat."""
        try:
            first = (self._root / "proc/stat").read_text().splitlines()[0].split()
        except (OSError, IndexError):
            return None
        ticks = [int(number) for number in first[1:9]]  # guest time, after these, is part of user time
        return ticks[3] + ticks[4], sum(ticks)
