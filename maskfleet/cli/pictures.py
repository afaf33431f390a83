"""``maskfleet open`` and ``overlay``: look at a job, on the server's page or in the terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import webbrowser
from pathlib import Path

import click
from rich.console import Console

from maskfleet.cli.server import connect, server_options
from maskfleet.cli.terminal import Named, reporting_errors
from maskfleet.cli.terminal_pictures import Protocol, blocks, iterm2, kitty, protocol_of, sixel
from maskfleet.client.errors import NotFound
from maskfleet.jobs.errors import InvalidRequest

#: Names of an overlay's file, of which a job writes one.
_OVERLAYS = ("overlay.png", "overlay.webp", "overlay.jpg")


@click.command("open")
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--print", "only_print", is_flag=True, help="Print the address, and open nothing.")
@click.option("--json", "as_json", is_flag=True, help="The same, as one line of JSON.")
@server_options
def open_command(job_id: str | None, only_print: bool, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Open the server's page, with the job JOB if it is given, in a browser.  Prints the address.

    The page asks for the API key, which is not put on the browser's command line, for other users could read it there.
    """
    with reporting_errors(), connect(api_url, api_key) as client:
        if job_id is not None:
            job_id = client.get(job_id).id
        address = f"{client.api_url}/{f'#job={job_id}' if job_id else ''}"
    click.echo(json.dumps({"address": address}) if as_json else address)
    if not (only_print or as_json) and not webbrowser.open(address):
        click.echo("No browser was found here. Open the address in one.", err=True)


@click.command("overlay")
@click.argument("job", metavar="JOB")
@click.option(
    "--protocol",
    type=Named([str(protocol) for protocol in Protocol]),
    help="How to show it.  [default: what the terminal understands; blocks if in doubt]",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the picture to this file instead.")
@server_options
def overlay_command(job: str, protocol: str | None, out: Path | None, api_url: str | None, api_key: str | None) -> None:
    """Show the overlay of the job JOB in the terminal.

    JOB may also be a picture here, or a folder that holds an overlay. If the output is no terminal, the picture is
    written to a file, whose path is printed.
    """
    with reporting_errors():
        local = _local(Path(job))
        if local is not None:
            name, picture = local.name, local.read_bytes()
        else:
            with connect(api_url, api_key) as client:
                names = [file.name for file in client.result(job).files if file.name in _OVERLAYS]
                if not names:
                    raise NotFound("no_overlay", f"{job} wrote no overlay. Add it to the outputs of the next job.")
                name, picture = f"{job}-{names[0]}", client.file(job, names[0])
        if out is None and protocol is None and not sys.stdout.isatty():
            out = Path(name) if local is None else local
        if out is not None:
            if out != local:
                out.write_bytes(picture)
            click.echo(out)
            return
    _show(picture, Protocol(protocol) if protocol else protocol_of(os.environ))


def _show(picture: bytes, protocol: Protocol) -> None:
    try:
        if protocol is Protocol.BLOCKS:
            columns, lines = shutil.get_terminal_size()
            console = Console(force_terminal=True, width=columns, soft_wrap=True)
            console.print(blocks(picture, columns, lines - 2), end="")
        else:
            encode = {Protocol.KITTY: kitty, Protocol.ITERM2: iterm2, Protocol.SIXEL: sixel}[protocol]
            click.echo(encode(picture), nl=False)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"To show this picture as {protocol}, install Pillow: pip install pillow. Or write it to a file with --out."
        ) from error


def _local(path: Path) -> Path | None:
    """Return the picture that a path names; None if there is no such file or folder.  Raises InvalidRequest."""
    if path.is_file():
        return path
    if not path.is_dir():
        return None
    for name in _OVERLAYS:
        if (path / name).is_file():
            return path / name
    raise InvalidRequest("no_overlay", f"There is no overlay in {path}.")
