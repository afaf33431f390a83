"""The demo's progress view: bars on a terminal, one line per change elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import TaskID

from maskfleet.cli.terminal import progress_bars, show_progress
from maskfleet.jobs.schema.record import JobView


class DemoProgress:
    """Shows several jobs at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = progress_bars()
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, label: str, job: JobView) -> None:
        """Update the job's bar, or print its state if that has changed."""
        if not self._bars.disable:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=None)
            show_progress(self._bars, self._tasks[label], job, label)
            return
        words = f"{job.status}, {job.progress.stage}" if job.progress else str(job.status)
        if self._said.get(label) != words:
            self._said[label] = words
            self._console.print(f"  {label}: {words}")
