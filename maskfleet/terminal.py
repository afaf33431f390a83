"""How the command line speaks: faults as ``code: detail`` with an exit status, progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jobs.errors import CallerError, JobError

#: Exit statuses: the caller must change something, or the service failed.
EXIT_CALLER = 2
EXIT_SERVICE = 1


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print a JobError as ``code: detail``, its further faults below, and exit 2 (the caller's) or 1."""
    try:
        yield
    except JobError as error:
        click.echo(str(error), err=True)
        for fault in getattr(error, "faults", ())[1:]:
            click.echo(f"  {fault.pointer}: {fault.detail}", err=True)
        sys.exit(EXIT_CALLER if isinstance(error, CallerError) else EXIT_SERVICE)


def progress_bars() -> Progress:
    """Make progress bars on stderr; where stderr is no terminal they stay silent."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
