"""``maskfleet jobs`` and ``models``: what a server has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import click

from maskfleet.cli.server import connect, server_options
from maskfleet.cli.terminal import Named, counted, printable, reporting_errors
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.status import Status

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


@click.command("jobs")
@click.option("--status", type=Named([str(status) for status in Status]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many at most.")
@_json_option
@server_options
def jobs_command(status: str | None, limit: int, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """List your jobs, newest first: id, state, mode, model, when they were sent, and what came of them."""
    with reporting_errors(), connect(api_url, api_key) as client:
        found = list(islice(client.jobs(status=status), limit))
    if as_json:
        for job in found:
            click.echo(job.model_dump_json())
        return
    for line in _aligned(_row(job) for job in found):
        click.echo(line)
    if not found:
        click.echo("No jobs." if status is None else f"No jobs are {status}.", err=True)


@click.command("models")
@_json_option
@server_options
def models_command(as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """List the models that a job may name, the default first, and how many workers have each loaded."""
    with reporting_errors(), connect(api_url, api_key) as client:
        models = client.model_views()
    for model in models:
        workers = counted(model.ready_workers, "ready worker")
        line = f"{printable(model.name)}  {workers}{'  default' if model.default else ''}"
        click.echo(model.model_dump_json() if as_json else line)


def _row(job: JobView) -> Sequence[str]:
    came = ""
    if job.result is not None:
        came = counted(job.result.masks, "mask")
    elif job.error is not None:
        came = job.error.code
    elif job.queue_position is not None:
        came = f"{counted(job.queue_position, 'job')} ahead of it"
    elif job.progress is not None:
        came = str(job.progress.stage)
    sent = f"{job.created_at.astimezone():%Y-%m-%d %H:%M:%S}"
    return (job.id, str(job.status), job.mode, printable(job.model), sent, came)


def _aligned(rows: Iterable[Sequence[str]]) -> Iterable[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
