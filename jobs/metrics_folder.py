"""The folder in which a program's processes keep their metrics, for as long as the program runs.

Imported by gunicorn's master, so it imports none of the app's libraries.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

#: prometheus_client's own variable: where a process keeps its metrics for others to show.
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
_LOCK = "lock"


class MetricsFolder:
    """A new folder, held by a lock that all processes of this program share, and that ends with the last of them."""

    def __init__(self, program: str, parent: str = "") -> None:
        """Make it in ``parent``, and remove those of the same program that was killed.

        parent: empty for memory, which nobody tidies up, unlike the system's temporary folder; that is used where
        there is no such memory.
        """
        memory = Path("/dev/shm")  # noqa: S108 — a name of our own in it
        found = Path(parent) if parent else memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
        for left in found.glob(f"maskfleet-{program}-*"):
            _remove_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=f"maskfleet-{program}-", dir=found))
        unnamed = self.path / f"{_LOCK}-unnamed"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK)  # only now: another program takes an unlocked one for left behind

    def forget(self, pid: int) -> None:
        """Remove what an ended process has said of its present: its gauges.  What it counted stays."""
        for gauges in self.path.glob(f"gauge_live*_{pid}.db"):
            gauges.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove it; the lock goes with the process."""
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove another program's folder, unless it is alive, which its lock shows across containers, too."""
    try:
        if folder.stat().st_uid != os.getuid():
            return
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(lock)
