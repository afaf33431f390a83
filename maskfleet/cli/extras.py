"""What a command needs beside the client: which extra brings it, and what is said when it is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import click

#: Commands that need more than the client, and the extras that bring it.
EXTRAS = {
    "up": "stack,worker",
    "demo": "stack,worker",
    "segment": "worker",
    "raster": "geo",
    "worker": "worker",
    "api": "server",
    "courier": "server",
    "sweep": "server",
    "keys": "server",
    "ledger": "server",
    "doctor": "server",
}
#: Packages that show an extra to be installed.  Not for ``stack``: its servers may be on the PATH as well.
_SHOWN_BY = {"server": ("flask", "gunicorn"), "worker": ("torch", "transformers")}


@contextmanager
def naming_extras(context: click.Context) -> Iterator[None]:
    """Turn a missing package into a line that says how to install what the context's command needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        extras = EXTRAS.get(context.invoked_subcommand or "")
        if extras is None or (error.name or "").partition(".")[0] == "maskfleet":
            raise
        raise click.ClickException(
            f"This command needs: pip install 'maskfleet[{extras}]' (there is no package {error.name!r} here)."
        ) from error


def require(*extras: str) -> None:
    """Raise what an import would, for a command whose work is done by other processes; nothing is imported."""
    for package in (package for extra in extras for package in _SHOWN_BY[extra]):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
