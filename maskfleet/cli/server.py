"""Which server a command talks to: the options that choose it, and the client for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.stack.discovery import LocalServer, local_server

if TYPE_CHECKING:
    from maskfleet import Client

#: Where ``maskfleet up`` stores its data unless told otherwise.
DEFAULT_DATA = Path(".maskfleet")
_DATA = "maskfleet.data"
_Function = TypeVar("_Function", bound=Callable[..., Any])  # Any: click passes the options by name


def _keep_data(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    context.meta[_DATA] = value


#: Names the local stack's folder; ``local_stack`` reads it, the command itself does not get it.
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    expose_value=False,
    callback=_keep_data,
    help=f"The folder that `maskfleet up --data` was given, to use that stack.  [default: {DEFAULT_DATA}]",
)


def server_options(command: _Function) -> _Function:
    """Add the options that choose the server; see ``connect``."""
    url = click.option(
        "--api-url",
        envvar="MASKFLEET_API_URL",
        help="The server's URL.  [default: MASKFLEET_API_URL, else the local stack's]",
    )
    key = click.option(
        "--api-key",
        envvar="MASKFLEET_API_KEY",
        help="The API key.  [default: MASKFLEET_API_KEY, else the local stack's]",
    )
    return url(key(data_option(command)))


def data_folder() -> tuple[Path, bool]:
    """Return the local stack's folder, and whether the command line named it."""
    context = click.get_current_context(silent=True)
    named: Path | None = context.meta.get(_DATA) if context is not None else None
    return named or DEFAULT_DATA, named is not None


def local_stack() -> LocalServer | None:
    """Return the stack that runs from the folder of --data; None if there is none."""
    return local_server(data_folder()[0])


@dataclass(frozen=True, slots=True)
class Server:
    """A server and the key for it."""

    api_url: str
    api_key: str = field(repr=False)

    def client(self, say: Callable[[str], object]) -> Client:
        """Return a client.  say: called with a sentence when it has to try again.  Raises Refused."""
        from maskfleet import Client  # imported late: the service's own programs need no HTTP client

        return Client(self.api_url, self.api_key, on_retry=say)


def server_of(api_url: str | None, api_key: str | None) -> Server:
    """Return the given server, or the local stack's; one named with --data comes before the environment's server.

    Raises InvalidRequest (``no_server``) if there is neither.
    """
    folder, is_named = data_folder()
    if is_named and _is_from_environment("api_url"):
        api_url = None
    if is_named and _is_from_environment("api_key"):
        api_key = None
    if api_url:
        return Server(api_url, api_key or "")
    local = local_stack()
    if local is None:
        if is_named:
            raise no_stack(folder)
        raise InvalidRequest(
            "no_server",
            f"No server given, and no stack is running from {folder.resolve()}. Set --api-url or MASKFLEET_API_URL, "
            "name a stack's folder with --data, or start one here with `maskfleet up`.",
        )
    return Server(local.api_url, api_key or local.api_key)


def connect(api_url: str | None, api_key: str | None) -> Client:
    """Return a client for the server, which says on stderr when it has to try again.

    Raises InvalidRequest (``no_server``), Refused (``invalid_api_url``, ``invalid_api_key``).
    """
    return server_of(api_url, api_key).client(say)


def say(message: str) -> None:
    """Print a sentence to stderr."""
    from maskfleet.cli.terminal import tell  # imported late, like the client

    tell(message, err=True)


def no_stack(folder: Path) -> InvalidRequest:
    """Return the error for a folder that --data names and from which no stack runs."""
    return InvalidRequest("no_server", f"No stack is running from {folder}. Start it: maskfleet up --data {folder}")


def _is_from_environment(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.ENVIRONMENT
