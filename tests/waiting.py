"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], deadline_s: float = 10.0, *, every_s: float = 0.02) -> T:
    """Give the condition's first true answer; fails when there is none within the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"Not within {deadline_s} s; the last answer was {answer!r}.")
        time.sleep(every_s)
