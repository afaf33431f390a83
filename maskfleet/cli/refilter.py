"""``maskfleet refilter``: a job's candidates with other thresholds."""

from __future__ import annotations

from pathlib import Path

import click

from maskfleet.cli.exports import inline_option, out_option, outputs_option, show_made, wait_option
from maskfleet.cli.jobs import json_option, priority_option, timeout_option
from maskfleet.cli.server import connect, server_options
from maskfleet.cli.spec_options import option_of, output_names, overlay_format_option
from maskfleet.cli.terminal import reporting_errors
from maskfleet.client.submission import RefilterFields
from maskfleet.jobs.schema.spec import Thresholds


def _thresholds(command: click.decorators.FC) -> click.decorators.FC:
    for name, field in reversed(Thresholds.model_fields.items()):
        kind = int if name == "min_mask_area" else float
        text = f"{field.description}  [default: as the job had it]"
        command = click.option(f"--{name.replace('_', '-')}", type=kind, help=text)(command)
    return command


@click.command("refilter")
@click.argument("job_id", metavar="ID")
@_thresholds
@outputs_option
@overlay_format_option
@inline_option
@priority_option
@wait_option
@out_option
@timeout_option
@json_option
@server_options
def refilter_command(
    job_id: str,
    pred_iou_thresh: float | None,
    stability_score_thresh: float | None,
    crops_nms_thresh: float | None,
    min_mask_area: int | None,
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
    """Filter the candidates of the job ID with other thresholds: a new job, which needs no GPU.

    The job must have been sent with --keep-candidates, and have succeeded. The masks are those of a full run. Prints
    the new job's id; with --wait how it ended; with --out also its files.
    """
    given = {
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
        "crops_nms_thresh": crops_nms_thresh,
        "min_mask_area": min_mask_area,
        "overlay_format": overlay_format,
        "inline": inline,
        "priority": priority,
    }
    fields: RefilterFields = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]  # click's choices are these names
    with reporting_errors(option_of), connect(api_url, api_key) as client:
        job = client.refilter(job_id, output_names(outputs) if outputs else None, **fields)
        show_made(client, job, and_wait=and_wait, out=out, timeout_s=timeout_s, as_json=as_json)
