"""``maskfleet up``: the whole service on this machine."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from maskfleet.cli.extras import require


@click.command("up", help="Run the whole service on this machine: Redis, S3, API, one worker and the courier.")
@click.option(
    "--data",
    default=Path(".maskfleet"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The data folder; use the same one again to keep its jobs.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Once ready, print URLs, keys and process ids as one line of JSON."
)
@click.option("--model", default="", help="A hub id or a folder.  [default: MASKFLEET_MODEL, or the demo checkpoint]")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="The API's port.  [default: the last one used, 8000, or a free one]"
)
def up_command(data: Path, as_json: bool, model: str, port: int | None) -> None:
    require("server", "worker")
    from maskfleet.jobs.logs import configure_logs
    from maskfleet.jobs.settings import SharedSettings
    from maskfleet.stack.folder import FolderInUse
    from maskfleet.stack.readiness import StackFailed
    from maskfleet.stack.servers import ServerFailed
    from maskfleet.stack.settings import NoModel
    from maskfleet.stack.stack import StackOptions, run_stack

    configure_logs(SharedSettings().log_level, program="up")
    os.umask(0o077)  # what this and the programs that it starts write, images and results among it, is the user's alone
    try:
        sys.exit(run_stack(StackOptions(data, as_json, model, port, _invocation()), click.echo))
    except (ServerFailed, FolderInUse, StackFailed, NoModel) as error:
        raise click.ClickException(str(error)) from error


def _invocation() -> str:
    """Return how the user called maskfleet, to be copied into another terminal in the same folder."""
    called = sys.argv[0]
    if Path(called).name != "maskfleet":
        return f"{sys.executable} -m maskfleet"
    found = shutil.which("maskfleet")
    return "maskfleet" if found and Path(found).resolve() == Path(called).resolve() else called
