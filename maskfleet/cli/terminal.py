"""Terminal output: errors as ``code: detail`` with an exit status, progress bars on stderr."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click
from pydantic import ValidationError
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
def reporting_errors(name_of: Callable[[str], str] = str) -> Iterator[None]:
    """Print a JobError or an ApiError as ``code: detail`` with its further faults; exit 2 (caller's error) or 1.

    name_of: returns what the command line calls the field of a JSON pointer, such as ``spec_options.option_of``.
    """
    try:
        yield
    except (JobError, ApiError) as error:
        click.echo(described(error, name_of), err=True)
        sys.exit(EXIT_CALLER if isinstance(error, CallerError | Refused) else EXIT_SERVICE)
    except ValidationError as error:
        click.echo(_unreadable(error), err=True)
        sys.exit(EXIT_CALLER)
    except OSError as error:
        click.echo(f"file_error: {error}", err=True)
        sys.exit(EXIT_CALLER)


def _unreadable(error: ValidationError) -> str:
    """Describe settings that are wrong, or a response that this version cannot read, without the values."""
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    if error.title.endswith("Settings"):
        lines = [f"MASKFLEET_{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}" for fault in faults]
        return "\n  ".join(["invalid_settings: The environment has settings that cannot be used.", *lines])
    where = "/".join(map(str, faults[0]["loc"]))
    return (
        f"unreadable_answer: The server's {error.title} cannot be read ({where}: {faults[0]['msg']}). Is it a "
        "maskfleet server, and this command not older than it?"
    )


def described(error: JobError | ApiError, name_of: Callable[[str], str] = str) -> str:
    """Return an error as ``code: detail``, with a line for each further fault."""
    faults = error.faults if isinstance(error, JobError) else error.errors
    detail = error.detail
    if faults:
        pointer = faults[0].pointer
        detail = f"{name_of(pointer)}: {faults[0].detail}" if detail.startswith(f"{pointer or '/'}: ") else detail
    further = [f"  {name_of(fault.pointer)}: {fault.detail}" for fault in faults[1:]]
    return "\n".join([f"{error.code}: {detail}", *further])


def demo_note(choose: str) -> str:
    """Say that the bundled demo model is in use, what it is good for, and how to choose another."""
    return (
        "Note: this is the bundled demo model. It is small and was trained on synthetic scenes: good for trying "
        f"maskfleet out on plain shapes such as the coins in examples/, no good for photographs. For those: {choose}."
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence that names the known words that a mistyped one may stand for; empty if there are none."""
    close = difflib.get_close_matches(word, [str(one) for one in known])
    return f"Did you mean {' or '.join(repr(one) for one in close)}?" if close else ""


class Named(click.Choice[str]):
    """One of some names; a mistyped one is answered with the nearest."""

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        close = did_you_mean(str(value), self.choices)
        return f"{super().get_invalid_choice_message(value, ctx)}{f' {close}' if close else ''}"


def counted(count: int, thing: str) -> str:
    """Return a number with its noun: ``1 mask``, ``2 masks``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


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
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    )


def tell(line: str, *, err: bool = False) -> None:
    """Print a line above the bars, if any are shown; click.echo would write into them."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{line}\n")
    stream.flush()


def show_progress(bars: Progress, task: TaskID, job: JobView, label: str = "") -> None:
    """Update a job's bar: its place in the queue, its stage, the batches that are done."""
    words = str(job.status)
    if job.queue_position:
        words += f", {job.queue_position:,} ahead of it"
    done, total = (1, 1) if job.status == "succeeded" else (0, None)
    if job.progress is not None:
        words = str(job.progress.stage)
        if job.progress.masks:
            words += f", {counted(job.progress.masks, 'mask')}"
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
        lines.append(f"  {counted(job.queue_position, 'job')} ahead of it")
    if job.progress is not None:
        lines.append(f"  {job.progress.stage}: {job.progress.done} of {job.progress.total or '?'} batches")
    if job.queue_s is not None:
        lines.append(f"  queued {job.queue_s:.2f} s" + (f", ran {job.run_s:.2f} s" if job.run_s is not None else ""))
    if job.result is not None:
        best = "" if job.result.best_score is None else f", best score {job.result.best_score:.3f}"
        lines.append(f"  {counted(job.result.masks, 'mask')}{best}")
    if job.error is not None:
        lines.append(f"  {job.error.code}: {job.error.detail}")
    return "\n".join(lines)
