"""``maskfleet webhook``: what a developer of a receiver needs."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import click

from jobs.settings import CourierSettings
from maskfleet.hook_server import HookServer
from maskfleet.listener import Listener
from maskfleet.local_server import local_webhook_secret
from maskfleet.webhooks import check_secrets


@click.group("webhook")
def webhook_command() -> None:
    """Listen for webhooks on this machine, and have the service send one."""


@webhook_command.command("listen")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0 for any that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="whsec_…",
    help="To verify with; may be given several times.  [default: MASKFLEET_WEBHOOK_SECRETS, else a local stack's]",
)
@click.option(
    "--answer",
    type=click.IntRange(200, 599),
    metavar="STATUS",
    help="Answer everything with this, to see what is done about a failure.  [default: 204, or 400 when invalid]",
)
def listen_command(port: int, host: str, secrets: tuple[str, ...], answer: int | None) -> None:
    """Print and verify the webhooks that arrive, until Ctrl-C.

    The service sends to this machine only when it is told so, by MASKFLEET_EGRESS_ALLOW_PRIVATE=1.
    """
    secrets = secrets or tuple(secret.get_secret_value() for secret in CourierSettings().webhook_secrets)
    if not secrets and (local := local_webhook_secret(Path(".maskfleet"))) is not None:
        secrets = (local.get_secret_value(),)
    try:
        check_secrets(secrets)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--secret") from error
    listener = Listener(secrets, answer, click.echo)
    try:
        server = HookServer(listener.take, host=host, port=port)
    except OSError as error:
        raise click.ClickException(
            f"{host}:{port} cannot be listened on: {error.strerror}. Give another --port, 0 for any that is free."
        ) from error
    with suppress(KeyboardInterrupt), server:
        verified = f"verified with {len(secrets)} secret(s)" if secrets else "not verified: give a --secret"
        click.echo(f"Listening on {server.url}, {verified}. Ctrl-C ends it.\n")
        threading.Event().wait()
