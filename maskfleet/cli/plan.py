"""``maskfleet plan``: how many workers it takes until all jobs are done by a time."""

from __future__ import annotations

import json
import re
import sys

import click

from maskfleet.cli.server import connect, server_options
from maskfleet.cli.terminal import EXIT_SERVICE, reporting_errors
from maskfleet.jobs.plan import Jobs, Plan, plan
from maskfleet.jobs.schema.fleet import ModelFleet

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType[float]):
    """A duration such as 90s, 10m or 2h; converted to seconds."""

    name = "90s|10m|2h"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        form = re.fullmatch(r"([0-9]{1,6})([smh])", str(value))
        if form is None:
            self.fail(f"{value!r} is not a number of seconds, minutes or hours, such as 10m.", param, ctx)
        return float(int(form[1]) * _UNITS_S[form[2]])


@click.command("plan")
@click.option("--deadline", "deadline_s", type=Duration(), required=True, help="By when, from now.")
@click.option("--model", help="One of the server's models.  [default: the first]")
@click.option(
    "--start",
    "start_s",
    type=Duration(),
    default="2m",
    show_default=True,
    help="How long another worker takes until it is ready: a machine, the image, the model.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one line of JSON.")
@server_options
def plan_command(
    deadline_s: float, model: str | None, start_s: float, as_json: bool, api_url: str | None, api_key: str | None
) -> None:
    """Say how many workers it takes until the jobs of now are done, and why.

    The key needs the scope fleet. The exit status is 1 if no number of workers is enough.
    """
    with reporting_errors(), connect(api_url, api_key) as client:
        fleet = client.fleet(model)
    # Running jobs count in full; each class has its own seconds, measured or assumed.
    jobs = [Jobs(count, one.backlog_s / count) for one in fleet.classes if (count := one.queued + one.running)]
    there = fleet.workers.idle + fleet.workers.busy
    found = plan(jobs, deadline_s=deadline_s, there=there, start_s=start_s)
    if as_json:
        click.echo(json.dumps(_document(fleet, found, deadline_s, start_s)))
    else:
        click.echo(_reasoning(fleet, found, deadline_s, start_s))
    if found.workers is None:
        sys.exit(EXIT_SERVICE)


def _document(fleet: ModelFleet, found: Plan, deadline_s: float, start_s: float) -> dict[str, object]:
    return {
        "model": fleet.model,
        "deadline_s": deadline_s,
        "start_s": start_s,
        "workers": found.workers,
        "jobs": fleet.queued + fleet.running,
        "work_s": round(found.work_s, 3),
        "there": fleet.workers.idle + fleet.workers.busy,
        "starting": fleet.workers.starting,
        "max_workers": fleet.max_workers,
        "explanation": _reasoning(fleet, found, deadline_s, start_s),
    }


def _reasoning(fleet: ModelFleet, found: Plan, deadline_s: float, start_s: float) -> str:
    there, starting = fleet.workers.idle + fleet.workers.busy, fleet.workers.starting
    lines = [f"{fleet.model}: {_some(fleet.queued, 'queued job')} and {fleet.running:,} running."]
    for one in fleet.classes:
        if count := one.queued + one.running:
            known = "measured" if one.job_s is not None else "assumed: none was measured yet"
            lines.append(
                f"  {one.priority}: {count:,} × {one.backlog_s / count:.3g} s ({known}) = {one.backlog_s:,.0f} s"
            )
    if not found.work_s:
        return "\n".join([*lines, "No workers are needed."])
    lines.append(f"One worker would take {found.work_s:,.0f} s; there are {deadline_s:,.0f} s.")
    if found.workers is None:
        longest_s = max(one.backlog_s / (one.queued + one.running) for one in fleet.classes if one.queued + one.running)
        rest = f", and another worker starts in {start_s:,.0f} s" if longest_s <= deadline_s else ""
        return "\n".join([*lines, f"No number of workers is enough: one job takes {longest_s:.3g} s{rest}."])
    if there:
        lines.append(f"A worker that is there ({there:,}) does {found.there_s:,.0f} s of that in whole jobs.")
    if found.workers > there:
        lines.append(f"A new worker does {found.new_s:,.0f} s, after {start_s:,.0f} s to start.")
    more = found.workers - there - starting
    change = f"{more:,} more than there are" if more > 0 else "no more than there are"
    coming = f" or start ({starting:,})" if starting else ""
    lines.append(f"Needed: {_some(found.workers, 'worker')}, {change}{coming}.")
    if found.workers > fleet.max_workers:
        lines.append(f"max_workers is {fleet.max_workers:,}: raise MASKFLEET_MAX_WORKERS.")
    return "\n".join(lines)


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
