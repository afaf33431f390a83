"""``maskfleet export``: a job's masks in further formats."""

from __future__ import annotations

from pathlib import Path

import click

from maskfleet.cli.jobs import end_job, fetch_files, json_option, priority_option, timeout_option, wait_for_job
from maskfleet.cli.server import connect, server_options
from maskfleet.cli.spec_options import option_of, output_names, overlay_format_option
from maskfleet.cli.terminal import Named, reporting_errors
from maskfleet.client.submission import ExportFields
from maskfleet.jobs.schema.spec import Inline, Output

_MADE_LATER = ", ".join(output for output in Output if output is not Output.LOGITS)


@click.command("export")
@click.argument("job_id", metavar="ID")
@click.option("--outputs", metavar="NAME,…", default="", help=f"What to write: any of {_MADE_LATER}.")
@overlay_format_option
@click.option(
    "--inline",
    type=Named([str(form) for form in Inline]),
    help="Show the masks in the new job itself; with --wait and --json.",
)
@priority_option
@click.option("--wait", "and_wait", is_flag=True, help="Wait until the new job has ended.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Wait, and write the result's files to this folder."
)
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
        if and_wait or out is not None:
            job = wait_for_job(client, job.id, timeout_s)
            if out is not None and job.status == "succeeded":
                fetch_files(client, job.id, out)
    if and_wait or out is not None:
        end_job(job, as_json=as_json, must_succeed=True, out=out)
    else:
        click.echo(job.model_dump_json() if as_json else job.id)
