"""A result that is remembered for a moment, so that asking often costs no more than asking once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from maskfleet.jobs.errors import JobError

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """The last result, or the error in its place."""

    def __init__(self, seconds: float) -> None:
        """seconds: how old a result may be; 0: none is remembered."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._until = 0.0
        self._result: tuple[Result] | JobError | None = None

    def get(self, make: Callable[[], Result]) -> Result:
        """Return the result, made anew if it is too old; those who ask meanwhile wait for it."""
        with self._lock:
            if self._result is None or time.monotonic() >= self._until:
                try:
                    self._result = (make(),)
                except JobError as error:
                    self._result = error
                self._until = time.monotonic() + self._seconds
            if isinstance(self._result, JobError):
                raise self._result
            return self._result[0]
