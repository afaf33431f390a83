"""``maskfleet doctor``: whether what the service needs is there and works, and how to mend what does not."""

from __future__ import annotations

import json
import sys

import click

from maskfleet.cli.checks import Finding, State, examine
from maskfleet.cli.server import data_folder, data_option
from maskfleet.cli.terminal import EXIT_SERVICE, printable
from maskfleet.jobs.logs import configure_logs

_MARKS = {
    State.OK: ("ok", "green"),
    State.WARNING: ("warning", "yellow"),
    State.FAILED: ("failed", "red"),
    State.SKIPPED: ("skipped", "bright_black"),
}


@click.command("doctor")
@click.option("--load-model", is_flag=True, help="Also load the model and segment the golden picture.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one line of JSON.")
@data_option
def doctor_command(load_model: bool, as_json: bool) -> None:
    """Check what the service needs on this machine: Redis, S3, model, device, clock, ports, keys, disk, versions.

    Run it with the settings of the programs, MASKFLEET_*; nothing is changed, but for one object that is written,
    read and deleted. The exit status is 1 if something fails.
    """
    configure_logs("ERROR", program="doctor")
    findings: list[Finding] = []
    data, is_named = data_folder()
    for finding in examine(data, is_named=is_named, load_model=load_model):
        findings.append(finding)
        if not as_json:
            _show(finding)
    failed = [finding.name for finding in findings if finding.state is State.FAILED]
    if as_json:
        found = {"ok": not failed, "checks": [finding.document for finding in findings]}
        click.echo(json.dumps(found))
    else:
        click.echo(f"\n{len(failed)} failed: {', '.join(failed)}." if failed else "\nNothing failed.")
    if failed:
        sys.exit(EXIT_SERVICE)


def _show(finding: Finding) -> None:
    word, colour = _MARKS[finding.state]
    click.echo(f"{click.style(f'{word:8}', fg=colour)} {finding.name:9} {printable(finding.detail)}")
    if finding.mend:
        click.echo(f"{'':19}To mend it: {printable(finding.mend)}")
