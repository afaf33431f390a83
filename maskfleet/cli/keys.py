"""``maskfleet keys``: create, list and revoke API keys; for operators, who can reach the Redis of the service."""

from __future__ import annotations

import re
from pathlib import Path

import click

from maskfleet.cli.terminal import reporting_errors
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.version import Schema
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.discovery import local_server

_UNITS_S = {"m": 60, "h": 3600, "d": 24 * 3600}


class Lifetime(click.ParamType[int]):
    """A duration such as 90d, 12h or 30m; converted to seconds."""

    name = "90d|12h|30m"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        form = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", value)
        if form is None:
            self.fail(f"{value!r} is not a number of minutes, hours or days, such as 90d.", param, ctx)
        return int(form[1]) * _UNITS_S[form[2]]


@click.group("keys")
def keys_command() -> None:
    """Create, list and revoke API keys.

    Only their SHA-256 is stored, in the Redis of MASKFLEET_REDIS_URL, else of the stack running from ./.maskfleet.
    The API accepts a new key at once and rejects a revoked one within five seconds.
    """


@keys_command.command("create")
@click.option("--tenant", required=True, help="The tenant whose jobs the key can access; any name you like.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([str(scope) for scope in Scope]),
    help="What the key allows; repeatable. admin allows everything.",
)
@click.option("--expires", "lifetime_s", type=Lifetime(), help="How long the key is valid.  [default: forever]")
def create_command(tenant: str, scopes: tuple[str, ...], lifetime_s: int | None) -> None:
    """Create a key and print it.  It cannot be shown again."""
    with reporting_errors():
        try:
            key, text = _store().create(tenant, [Scope(scope) for scope in scopes], lifetime_s=lifetime_s)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--tenant") from error
    click.echo(f"Key {key.id} for {key.tenant}. Save it now; it will not be shown again:", err=True)
    click.echo(text.get_secret_value())


@keys_command.command("list")
@click.option("--tenant", help="Only this tenant's keys.")
def list_command(tenant: str | None) -> None:
    """List the keys created here: id, tenant, scopes, creation date and expiry."""
    with reporting_errors():
        keys = _store().listed()
    for key in keys:
        if tenant in (None, key.tenant):
            expires = f"{key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "never"
            scopes = ",".join(sorted(key.scopes))
            click.echo(f"{key.id}  {key.tenant}  {scopes}  created {key.created_at:%Y-%m-%d}  expires {expires}")


@keys_command.command("revoke")
@click.argument("key_id", metavar="ID")
def revoke_command(key_id: str) -> None:
    """Revoke the key ID, as shown by `list` and found in the key after mf_."""
    with reporting_errors():
        revoked = _store().revoke(key_id)
    if not revoked:
        raise click.ClickException(f"There is no key {key_id}; it may have expired, or be set in MASKFLEET_API_KEYS.")
    click.echo(f"Key {key_id} is revoked.")


def _store() -> KeyStore:
    settings = SharedSettings()
    if "redis_url" not in settings.model_fields_set and (local := local_server(Path(".maskfleet"))) is not None:
        settings = settings.model_copy(update={"redis_url": local.redis_url})
    client = connect(settings)
    Schema(client).check()
    return KeyStore(client)
