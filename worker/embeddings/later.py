"""Writes that nobody waits for: done after a job's result is recorded, while the next job may already run."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.logs import get_logger

#: Each holds an embedding, of 4 to 20 MB.
MAX_WAITING = 4

logger = get_logger()


class LaterWrites:
    """One thread that writes what saves later jobs work.  What fails, or finds too many waiting, is left out."""

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="later")
        self._room = threading.BoundedSemaphore(max_waiting)

    def do(self, write: Callable[[], None]) -> None:
        """Have something written soon."""
        if not self._room.acquire(blocking=False):
            logger.warning("image_not_kept", code="too_many_writes")
            return
        context = contextvars.copy_context()  # with the job's id, for the log
        self._thread.submit(context.run, self._write_and_make_room, write)

    def now(self, write: Callable[[], None]) -> None:
        """Write something at once; what fails is left out all the same."""
        _write(write)

    def wait(self) -> None:
        """Return when everything asked for so far is done."""
        self._thread.submit(lambda: None).result()

    def _write_and_make_room(self, write: Callable[[], None]) -> None:
        try:
            _write(write)
        finally:
            self._room.release()


def _write(write: Callable[[], None]) -> None:
    try:
        write()
    except JobError as error:
        logger.warning("image_not_kept", code=error.code)
    except Exception:  # the outermost handler of a thread: a job that has succeeded must not fail for this
        logger.warning("image_not_kept", code="internal_error", exc_info=True)
