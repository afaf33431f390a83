"""``maskfleet export``: a job's masks in further formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskfleet.cli.jobs import end_job, fetch_files, json_option, priority_option, timeout_option, wait_for_job
from maskfleet.cli.server import connect, server_options
from maskfleet.cli.spec_options import option_of, output_names, overlay_format_option
from maskfleet.cli.terminal import Named, reporting_errors
from maskfleet.client.submission import ExportFields
from maskfleet.jobs.schema.spec import Inline, Output

if TYPE_CHECKING:
    from maskfleet import Client, Job

_MADE_LATER = ", ".join(output for output in Output if output is not Output.LOGITS)
outputs_option = click.option("--outputs", metavar="NAME,…", default="", help=f"What to write: any of {_MADE_LATER}.")
inline_option = click.option(
    "--inline",
    type=Named([str(form) for form in Inline]),
    help="Show the masks in the new job itself; with --wait and --json.",
)
wait_option = click.option("--wait", "and_wait", is_flag=True, help="Wait until the new job has ended.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Wait, and write the result's files to this folder."
)


@click.command("export")
@click.argument("job_id", metavar="ID")
@outputs_option
@overlay_format_option
@inline_option
@priority_option
@wait_option
@out_option
@timeout_option
@json_option
@server_options
def export_command(
    job_id: str,
    outputs: str,
    overlay_format: str | None,
    inline: str | None,
    priority: str | None,
    and_wait: bool,
    out: Path | None,
    timeout_s: float | None,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
) -> None:
    """Write the masks of the job ID, which has succeeded, in further formats: a new job, which needs no GPU.

    Prints the new job's id; with --wait how it ended; with --out also its files.
    """
    given = {"overlay_format": overlay_format, "inline": inline, "priority": priority}
    fields: ExportFields = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]  # click's choices are these names
    with reporting_errors(option_of), connect(api_url, api_key) as client:
        job = client.export(job_id, output_names(outputs), **fields)
        show_made(client, job, and_wait=and_wait, out=out, timeout_s=timeout_s, as_json=as_json)


def show_made(
    client: Client, job: Job, *, and_wait: bool, out: Path | None, timeout_s: float | None, as_json: bool
) -> None:
    """Print a job that was made of an earlier one: its id, or how it ended."""
    if not and_wait and out is None:
        click.echo(job.model_dump_json() if as_json else job.id)
        return
    job = wait_for_job(client, job.id, timeout_s)
    if out is not None and job.status == "succeeded":
        fetch_files(client, job.id, out)
    end_job(job, as_json=as_json, must_succeed=True, out=out)
