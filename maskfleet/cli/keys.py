"""``maskfleet keys``: make, list and revoke API keys, for whoever runs the service and may reach its Redis."""

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
    """A time like 90d, 12h or 30m; seconds for the command."""

    name = "90d|12h|30m"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        form = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", value)
        if form is None:
            self.fail(f"{value!r} is not a number of minutes, hours or days, as in 90d.", param, ctx)
        return int(form[1]) * _UNITS_S[form[2]]


@click.group("keys")
def keys_command() -> None:
    """Make, list and revoke API keys.

    They are kept in Redis, only as their SHA-256: in that of MASKFLEET_REDIS_URL, else of the stack that runs from
    ./.maskfleet. The API knows a new one at once, and forgets a revoked one within five seconds.
    """


@keys_command.command("create")
@click.option("--tenant", required=True, help="Whose jobs the key reaches; made up by you.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([str(scope) for scope in Scope]),
    help="What it allows; may be given several times. admin allows all.",
)
@click.option("--expires", "lifetime_s", type=Lifetime(), help="After this time it opens nothing.  [default: never]")
def create_command(tenant: str, scopes: tuple[str, ...], lifetime_s: int | None) -> None:
    """Make a key and print it.  It cannot be shown again."""
    with reporting_errors():
        try:
            key, text = _store().create(tenant, [Scope(scope) for scope in scopes], lifetime_s=lifetime_s)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--tenant") from error
    click.echo(f"The key {key.id} of {key.tenant}; keep it, it is not shown again:", err=True)
    click.echo(text.get_secret_value())


@keys_command.command("list")
@click.option("--tenant", help="Only this tenant's.")
def list_command(tenant: str | None) -> None:
    """List the keys that were made here: id, tenant, scopes, when made, when they expire."""
    with reporting_errors():
        keys = _store().listed()
    for key in keys:
        if tenant in (None, key.tenant):
            expires = f"{key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "never"
            scopes = ",".join(sorted(key.scopes))
            click.echo(f"{key.id}  {key.tenant}  {scopes}  made {key.created_at:%Y-%m-%d}  expires {expires}")


@keys_command.command("revoke")
@click.argument("key_id", metavar="ID")
def revoke_command(key_id: str) -> None:
    """Revoke the key ID, which `list` shows and which stands in the key after mf_."""
    with reporting_errors():
        revoked = _store().revoke(key_id)
    if not revoked:
        raise click.ClickException(f"There is no key {key_id}; it may have expired, or be one of MASKFLEET_API_KEYS.")
    click.echo(f"The key {key_id} is revoked.")


def _store() -> KeyStore:
    settings = SharedSettings()
    if "redis_url" not in settings.model_fields_set and (local := local_server(Path(".maskfleet"))) is not None:
        settings = settings.model_copy(update={"redis_url": local.redis_url})
    client = connect(settings)
    Schema(client).check()
    return KeyStore(client)
