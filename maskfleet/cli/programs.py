"""``maskfleet api``, ``worker``, ``courier`` and ``sweep``: the service's programs, each on its own machines."""

from __future__ import annotations

import json
import os
import sys

import click

from maskfleet.cli.extras import require
from maskfleet.cli.server import data_option


@click.command("api", help="Run the API under gunicorn. It needs no torch: `pip install maskfleet[server]`.")
@click.option("--host", help="The address to listen on; 0.0.0.0 for all.  [default: from MASKFLEET_BIND]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: from MASKFLEET_BIND]")
def api_command(host: str | None, port: int | None) -> None:
    require("server")
    from maskfleet.jobs.settings import ApiSettings

    usual_host, _, usual_port = ApiSettings().bind.rpartition(":")
    bind = f"{host or usual_host}:{port or usual_port}"
    # Not an option of gunicorn's, which would replace the second address, MASKFLEET_METRICS_BIND.
    os.environ["MASKFLEET_BIND"] = bind
    command = ["--config", "python:maskfleet.api.server", "maskfleet.api.app:create_app()"]
    sys.stdout.flush()
    # This process becomes gunicorn, so that signals reach it.
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *command])  # noqa: S606


@click.command("worker", help="Run a worker on each of this machine's devices.")
@click.option(
    "--devices",
    default="all",
    show_default=True,
    metavar="all|0,2|cpu|none",
    help="Every GPU, the GPUs with these numbers, the CPU; or none, for a worker that takes only jobs which need no "
    "model, such as exports.",
)
@click.option(
    "--slots-per-device",
    type=click.IntRange(1, 64),
    metavar="N",
    help="So many workers share each device, so that it does not wait for downloads, decoding and uploads.  "
    "[default: MASKFLEET_SLOTS_PER_DEVICE, or 1]",
)
@click.option(
    "--tune",
    is_flag=True,
    help="Run no worker for the service, but measure which N is best on this machine.  Takes some minutes; uses "
    "servers of its own.",
)
def worker_command(devices: str, slots_per_device: int | None, tune: bool) -> None:
    require("worker")
    from maskfleet.jobs.logs import configure_logs
    from maskfleet.jobs.settings import NO_DEVICE, WorkerSettings
    from maskfleet.worker.node.device import NoSuchDevice
    from maskfleet.worker.node.fleet import TooManyNodes, run_fleet
    from maskfleet.worker.node.memory import TooLittleMemory

    if tune and devices == NO_DEVICE:
        raise click.UsageError("--tune measures a model; with --devices none there is none.")
    if tune and slots_per_device:
        raise click.UsageError("--tune tries several numbers of slots: leave --slots-per-device out.")
    settings = WorkerSettings()
    configure_logs(settings.log_level, program="fleet")
    try:
        if tune:
            from maskfleet.cli.tune import tune_slots

            tune_slots(devices, os.environ)
            return
        if slots_per_device:
            settings = settings.model_copy(update={"slots_per_device": slots_per_device})
        run_fleet(devices, os.environ, settings)
    except (NoSuchDevice, TooManyNodes, TooLittleMemory) as error:
        raise click.ClickException(str(error)) from error


@click.command("courier", help="Run the courier: it sends webhooks and enforces leases and deadlines.")
def courier_command() -> None:
    from maskfleet.worker.courier.courier import main

    main()


@click.command(
    "sweep", help="Remove objects under results/ that no job's record refers to; the courier does this, too."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per folder.")
@data_option
def sweep_command(dry_run: bool, as_json: bool) -> None:
    from maskfleet.cli.operators import naming_redis, with_local_stack
    from maskfleet.cli.terminal import counted, reporting_errors
    from maskfleet.jobs.ledger.connection import connect
    from maskfleet.jobs.ledger.version import Schema
    from maskfleet.jobs.logs import configure_logs
    from maskfleet.jobs.settings import CourierSettings
    from maskfleet.worker.courier.sweep import Sweep

    configure_logs("WARNING", program="sweep")
    objects = size = 0
    with reporting_errors(), naming_redis(settings := with_local_stack(CourierSettings())):
        Schema(connect(settings)).check()  # a sweep removes whatever has no record
        for leftover in Sweep.from_settings(settings).run(dry_run=dry_run):
            count = len(leftover.objects)
            if as_json:
                found = {"folder": leftover.folder, "objects": count, "bytes": leftover.size, "why": leftover.why}
                click.echo(json.dumps({**found, "removed": not dry_run}))
            else:
                what = f"{counted(count, 'object')}, {counted(leftover.size, 'byte')}"
                click.echo(f"{leftover.folder}  {what}: {leftover.why}")
            objects, size = objects + len(leftover.objects), size + leftover.size
    click.echo(
        f"{counted(objects, 'object')}, {counted(size, 'byte')} {'would be' if dry_run else 'were'} removed.",
        err=as_json,
    )
