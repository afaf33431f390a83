"""``maskfleet ledger``: maintain the data in Redis; for operators, who can reach the Redis of the service."""

from __future__ import annotations

import json

import click

from maskfleet.cli.operators import naming_redis, with_local_stack
from maskfleet.cli.server import data_option
from maskfleet.cli.terminal import reporting_errors
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.version import SCHEMA, upgrade
from maskfleet.jobs.logs import configure_logs
from maskfleet.jobs.settings import SharedSettings


@click.group("ledger")
def ledger_command() -> None:
    """Maintain the ledger: the jobs and webhooks in the Redis of MASKFLEET_REDIS_URL, else of the local stack."""


@ledger_command.command("upgrade")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per step.")
@data_option
def upgrade_command(dry_run: bool, as_json: bool) -> None:
    """Upgrade the ledger to the version that this program needs.

    Stop the API, the workers and the couriers first, and start those of this version afterwards; jobs wait meanwhile.
    If interrupted, run it again: it continues where it stopped.
    """
    configure_logs("WARNING", program="ledger")
    steps = 0
    with reporting_errors():
        settings = with_local_stack(SharedSettings())
        with naming_redis(settings):
            for step in upgrade(connect(settings), dry_run=dry_run):
                if as_json:
                    step_made = {"version": step.version, "summary": step.summary, "done": not dry_run}
                    click.echo(json.dumps(step_made))
                else:
                    click.echo(f"{'to do' if dry_run else 'done'}: version {step.version}, {step.summary}")
                steps += 1
    if not (dry_run and steps):
        click.echo(f"The ledger is at version {SCHEMA}.", err=as_json)
