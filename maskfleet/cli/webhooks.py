"""``maskfleet webhook``: tools for developing a webhook receiver."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import click

from maskfleet.cli.listener import Listener
from maskfleet.cli.server import connect, local_stack, server_options
from maskfleet.cli.terminal import EXIT_SERVICE, counted, delivery_summary, printable, reporting_errors
from maskfleet.client.webhooks import check_secrets
from maskfleet.jobs.schema.api import PingView
from maskfleet.stack.hook_server import HookServer


class Secret(click.ParamType[str]):
    """A webhook's secret; in the environment several, with commas between."""

    name = "whsec_…"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [part.strip() for part in rv.split(",") if part.strip()]


@click.group("webhook")
def webhook_command() -> None:
    """Receive webhooks on this machine, have the service send a test one, or see the secret to verify them with."""


@webhook_command.command("listen")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0 for any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    type=Secret(),
    envvar="MASKFLEET_LISTEN_SECRETS",
    help="A secret to verify with; repeatable.  [default: MASKFLEET_LISTEN_SECRETS, else the server's for you]",
)
@click.option(
    "--answer",
    type=click.IntRange(200, 599),
    metavar="STATUS",
    help="Always respond with this status, to try out failures.  [default: 204, or 400 if invalid]",
)
@server_options
def listen_command(
    port: int, host: str, secrets: tuple[str, ...], answer: int | None, api_url: str | None, api_key: str | None
) -> None:
    """Print and verify the webhooks that arrive, until Ctrl-C.

    The service sends to this machine only with MASKFLEET_EGRESS_ALLOW_PRIVATE=1.
    """
    if not secrets and (api_url or local_stack()):
        with reporting_errors(), connect(api_url, api_key) as client:
            secrets = client.webhook_secret().all
    try:
        check_secrets(secrets)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--secret") from error
    listener = Listener(secrets, answer, click.echo)
    try:
        server = HookServer(listener.take, host=host, port=port)
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen on {host}:{port}: {error.strerror}. Use another --port, or 0 for any free one."
        ) from error
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits SIGINT as ignored
    with suppress(KeyboardInterrupt), server:
        verified = (
            f"verified with {counted(len(secrets), 'secret')}"
            if secrets
            else "not verified: no --secret given, and no server to ask for it"
        )
        click.echo(f"Listening on {server.url}, {verified}. Press Ctrl-C to stop.\n")
        threading.Event().wait()


@webhook_command.command("secret")
@click.option("--rotate", is_flag=True, help="Replace it first; the previous one signs, too, for the overlap.")
@click.option(
    "--overlap",
    "overlap_s",
    type=click.IntRange(0, 7 * 24 * 3600),
    metavar="SECONDS",
    help="With --rotate: how long; 0 for a secret that has leaked.  [default: 86400, a day]",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as one line of JSON, with the earlier ones.")
@server_options
def secret_command(
    rotate: bool, overlap_s: int | None, as_json: bool, api_url: str | None, api_key: str | None
) -> None:
    """Print the secret that signs your tenant's webhooks, to verify them with.

    The key needs the scope webhooks:secret.
    """
    if overlap_s is not None and not rotate:
        raise click.UsageError("--overlap needs --rotate.")
    with reporting_errors(), connect(api_url, api_key) as client:
        if rotate:
            shown = client.rotate_webhook_secret(overlap_s=24 * 3600 if overlap_s is None else overlap_s)
        else:
            shown = client.webhook_secret()
    click.echo(shown.model_dump_json() if as_json else shown.secret)
    for earlier in shown.earlier:
        until = f"until {earlier.signs_until:%Y-%m-%d %H:%M:%S} UTC" if earlier.signs_until else "for now"
        click.echo(f"An earlier secret signs, too, {until}; --json shows it.", err=True)


@webhook_command.command("ping")
@click.argument("url", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the ping as one line of JSON.")
@server_options
def ping_command(url: str | None, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Have the service send a signed test event to URL, or to your tenant's own endpoint.

    Prints the headers and body that were signed, and the response. The exit status is 0 if it was delivered.
    """
    with reporting_errors(), connect(api_url, api_key) as client:
        ping = client.ping_webhook(url)
    click.echo(ping.model_dump_json() if as_json else _shown(ping))
    if ping.code != "delivered":
        why = {
            "not_delivered": "the receiver did not accept it",
            "not_sent_yet": f"no courier has sent it yet; check later with: maskfleet deliveries {ping.delivery.id}",
        }
        click.echo(f"{ping.code}: {why[ping.code]}", err=True)
        sys.exit(EXIT_SERVICE)


def _shown(ping: PingView) -> str:
    headers = [f"{name}: {value}" for name, value in (ping.headers or {}).items()]
    return "\n".join(
        [f"POST {printable(ping.delivery.url)}", *headers, "", ping.body, "", delivery_summary(ping.delivery)]
    )
