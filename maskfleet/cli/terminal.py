"""Terminal output: errors as ``code: detail`` with an exit status, progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from maskfleet.client.errors import ApiError, Refused
from maskfleet.jobs.errors import CallerError, JobError
from maskfleet.jobs.schema.delivery import DeliveryAttempt, DeliveryView
from maskfleet.jobs.schema.record import JobView

#: Exit statuses: the service failed (or the job did), or the caller must change something.
EXIT_SERVICE = 1
EXIT_CALLER = 2


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print a JobError or an ApiError as ``code: detail`` with its further faults; exit 2 (caller's error) or 1."""
    try:
        yield
    except (JobError, ApiError) as error:
        click.echo(str(error), err=True)
        for fault in (getattr(error, "faults", ()) or getattr(error, "errors", ()))[1:]:
            click.echo(f"  {fault.pointer}: {fault.detail}", err=True)
        sys.exit(EXIT_CALLER if isinstance(error, CallerError | Refused) else EXIT_SERVICE)
    except OSError as error:
        click.echo(f"file_error: {error}", err=True)
        sys.exit(EXIT_CALLER)


def progress_bars() -> Progress:
    """Return progress bars on stderr; they print nothing if stderr is not a terminal."""
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


def show_progress(bars: Progress, task: TaskID, job: JobView, label: str = "") -> None:
    """Update a job's bar: its place in the queue, its stage, the batches that are done."""
    words = str(job.status)
    if job.queue_position:
        words += f", {job.queue_position} ahead of it"
    done, total = (1, 1) if job.status == "succeeded" else (0, None)
    if job.progress is not None:
        words = f"{job.progress.stage}, {job.progress.masks} masks" if job.progress.masks else str(job.progress.stage)
        done, total = job.progress.done, job.progress.total or None
    bars.update(task, description=f"{label or job.mode}: {words}", completed=done, total=total)


def printable(text: str) -> str:
    """Escape the control characters in untrusted text, so that a terminal does not act on them."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def delivery_summary(delivery: DeliveryView) -> str:
    """Summarise a webhook and its delivery attempts, one line each."""
    lines = [f"{delivery.id}  {delivery.type}  {delivery.state}  {printable(delivery.url)}"]
    lines += [f"  {attempt_summary(one)}" for one in delivery.tries]
    if delivery.detail:
        lines.append(f"  {printable(delivery.detail)}")
    if delivery.next_try_at is not None:
        lines.append(f"  next attempt at {delivery.next_try_at:%Y-%m-%d %H:%M:%S} UTC")
    return "\n".join(lines)


def attempt_summary(attempt: DeliveryAttempt) -> str:
    """Summarise a delivery attempt in one line: number, time, duration and response."""
    said = str(attempt.status) if attempt.status is not None else attempt.error or "no response"
    words = "  ".join(printable(text) for text in (said, attempt.detail or "", attempt.answer) if text)
    return f"{attempt.number}  {attempt.at:%Y-%m-%d %H:%M:%S} UTC  {attempt.duration_s:.2f} s  {words}"


def summary(job: JobView) -> str:
    """Summarise a job in a few lines."""
    lines = [f"{job.id}  {job.status}", f"  mode {job.mode}, model {job.model}, attempt {job.attempt}"]
    if job.queue_position is not None:
        lines.append(f"  {job.queue_position} jobs ahead of it")
    if job.progress is not None:
        lines.append(f"  {job.progress.stage}: {job.progress.done} of {job.progress.total or '?'} batches")
    if job.queue_s is not None:
        lines.append(f"  queued {job.queue_s:.2f} s" + (f", ran {job.run_s:.2f} s" if job.run_s is not None else ""))
    if job.result is not None:
        best = "" if job.result.best_score is None else f", best score {job.result.best_score:.3f}"
        lines.append(f"  {job.result.masks} masks{best}, under {job.result.prefix}")
    if job.error is not None:
        lines.append(f"  {job.error.code}: {job.error.detail}")
    return "\n".join(lines)
