"""Work that computes for long, kept off the event loop: parsing a large body, or decoding the image in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

#: What has fewer bytes takes less time than handing it over would be worth: about a millisecond.
LARGE_BYTES = 64 * 2**10


class Cpu:
    """Runs functions in place, or in threads where the server has an event loop that they would stop.

    Such a thread knows no request: a function gets all it needs as arguments, and waits for nothing.
    """

    def __init__(self) -> None:
        self._in_thread: Callable[[Callable[[], Any]], Any] | None = None  # Any: whatever a function returns

    def use(self, in_thread: Callable[[Callable[[], Any]], Any]) -> None:
        """Run large work by ``in_thread``, which calls a function in a thread and waits for its result."""
        self._in_thread = in_thread

    def run(self, size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that works on ``size`` bytes, and return what it returns."""
        if self._in_thread is None or size < LARGE_BYTES:
            return function(*args, **kwargs)
        result, error = self._in_thread(partial(_outcome, partial(function, *args, **kwargs)))
        if error is not None:
            raise error
        return cast(R, result)


def _outcome(function: Callable[[], R]) -> tuple[R | None, Exception | None]:
    # gevent would print an exception that leaves a thread's function.
    try:
        return function(), None
    except Exception as error:  # noqa: BLE001 — raised again by the caller
        return None, error
