"""``maskfleet token``: a token for a web page, to try one out; a server gets its own with ``Client.create_token``."""

from __future__ import annotations

import click

from maskfleet.cli.server import connect, server_options
from maskfleet.cli.terminal import reporting_errors


@click.command("token")
@click.option("--image-id", metavar="ID", help="The only image that it is for.  [default: all of your jobs]")
@click.option("--upload-id", metavar="ID", help="The same, for an upload.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["jobs:read", "jobs:write", "jobs:interactive"]),
    help="What it allows; repeatable.  [default: jobs:read and jobs:write, as far as the key has them]",
)
@click.option("--ttl", "ttl_s", type=click.IntRange(1, 3600), default=600, show_default=True, metavar="SECONDS")
@click.option("--json", "as_json", is_flag=True, help="Print it as one line of JSON, with its expiry.")
@server_options
def token_command(
    image_id: str | None,
    upload_id: str | None,
    scopes: tuple[str, ...],
    ttl_s: int,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
) -> None:
    """Make a short-lived token for a web page and print it.  It ends by itself, or with the key that made it."""
    with reporting_errors(), connect(api_url, api_key) as client:
        made = client.create_token(ttl_s=ttl_s, image_id=image_id, upload_id=upload_id, scopes=scopes or None)
    click.echo(made.model_dump_json() if as_json else made.token)
    click.echo(f"It allows {', '.join(made.scopes)} until {made.expires_at:%Y-%m-%d %H:%M:%S} UTC.", err=True)
