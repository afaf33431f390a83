"""The lock of a device that several workers share: one of them computes a grid of points, the others wait their turn.

Without it their batches would alternate, their jobs end together, and the device idle while all of them write results
and fetch images.  With it the device goes from one job to the next, and what is beside it runs meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from maskfleet.jobs.logs import get_logger
from maskfleet.worker.node.names import device_of
from maskfleet.worker.stages import StageName, stage

logger = get_logger()

#: Longer than a job has the device.  A worker that waited for so long goes on without: the lock is for speed alone.
PATIENCE_S = 60.0
_LOOK_S = 0.002


class DeviceLock:
    """A lock between processes: the system lets go of it when its holder ends, however it does.

    file: the same for all workers of the device; None for a device that is not shared, which needs no lock.
    """

    def __init__(self, file: Path | None, patience_s: float = PATIENCE_S) -> None:
        self._file = None
        if file is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(file, flags, 0o600)
        self._patience_s = patience_s
        self._is_wanted = self._has_waited = False

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Let go in the end of a lock that ``take`` got in the block; outside of such a block, it gets none."""
        self._is_wanted = True
        try:
            yield
        finally:
            self._is_wanted = False
            self._has_waited = False
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def take(self, check: Callable[[], None]) -> None:
        """Wait for the lock, unless this worker has it, or no block wants it.

        check: called all the while; what it raises ends the wait.
        """
        if self._file is None or not self._is_wanted or self._has_waited:
            return
        until = time.monotonic() + self._patience_s
        with stage(StageName.WAIT_FOR_DEVICE):
            while not _is_locked(self._file):
                check()
                if time.monotonic() > until:
                    logger.warning("device_not_shared_in_turn", waited_s=self._patience_s)
                    break
                time.sleep(_LOOK_S)
        self._has_waited = True


def _is_locked(file: int) -> bool:
    """Lock a file, unless another process has; return whether this one has now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


NOT_SHARED = DeviceLock(None)


def lock_of(node: str, slots: int) -> DeviceLock:
    """Return the lock of a node's device.  slots: how many workers share it."""
    if slots == 1:
        return NOT_SHARED
    device = re.sub(r"[^\w.@-]", "_", device_of(node))
    return DeviceLock(Path(tempfile.gettempdir(), f"maskfleet-{os.getuid()}-{device}.lock"))
