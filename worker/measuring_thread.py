"""Masks measured by this machine's cores while a GPU decodes the next batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class MeasuringThread:
    """Runs tasks in their order, where wanted each in a thread while the next one is being made.

    Leaving it waits for the last.  What a task raises is raised by the next ``run``, or on leaving.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="measuring") if wanted else None
        self._running: Future[object] | None = None

    def __enter__(self) -> MeasuringThread:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        with self._pool:
            if kind is None:
                self._wait()

    def run(self, task: Callable[[], object]) -> None:
        """Run a task, here and now or once the one before it is done."""
        if self._pool is None:
            task()
        else:
            self._wait()
            self._running = self._pool.submit(task)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
