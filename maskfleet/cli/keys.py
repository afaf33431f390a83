"""``maskfleet keys``: create, list and revoke API keys; for operators, who can reach the Redis of the service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

from maskfleet.cli.operators import naming_redis, with_local_stack
from maskfleet.cli.server import data_option
from maskfleet.cli.terminal import reporting_errors
from maskfleet.jobs.ledger.api_keys import Key, KeyStore, Scope
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.version import Schema
from maskfleet.jobs.settings import SharedSettings

_UNITS_S = {"m": 60, "h": 3600, "d": 24 * 3600}


class Lifetime(click.ParamType[int]):
    """A duration such as 90d, 12h or 30m; converted to seconds."""

    name = "90d|12h|30m"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        form = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", value)
        if form is None:
            self.fail(f"{value!r} is not a number of minutes, hours or days, such as 90d.", param, ctx)
        return int(form[1]) * _UNITS_S[form[2]]


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


@click.group("keys")
def keys_command() -> None:
    """Create, list and revoke API keys.

    Only their SHA-256 is stored, in the Redis of MASKFLEET_REDIS_URL, else of the local stack.
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
@_json_option
@data_option
def create_command(tenant: str, scopes: tuple[str, ...], lifetime_s: int | None, as_json: bool) -> None:
    """Create a key and print it.  It cannot be shown again."""
    with _store() as store:
        try:
            key, text = store.create(tenant, [Scope(scope) for scope in scopes], lifetime_s=lifetime_s)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--tenant") from error
    if as_json:
        click.echo(json.dumps({**_document(key), "key": text.get_secret_value()}))
        return
    click.echo(f"Key {key.id} for {key.tenant}. Save it now; it will not be shown again:", err=True)
    click.echo(text.get_secret_value())


@keys_command.command("list")
@click.option("--tenant", help="Only this tenant's keys.")
@_json_option
@data_option
def list_command(tenant: str | None, as_json: bool) -> None:
    """List the keys created here: id, tenant, scopes, creation date and expiry."""
    with _store() as store:
        keys = store.listed()
    for key in keys:
        if tenant not in (None, key.tenant):
            continue
        if as_json:
            click.echo(json.dumps(_document(key)))
        else:
            expires = f"{key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "never"
            scopes = ",".join(sorted(key.scopes))
            click.echo(f"{key.id}  {key.tenant}  {scopes}  created {key.created_at:%Y-%m-%d}  expires {expires}")


@keys_command.command("revoke")
@click.argument("key_id", metavar="ID")
@_json_option
@data_option
def revoke_command(key_id: str, as_json: bool) -> None:
    """Revoke the key ID, as shown by `list` and found in the key after mf_."""
    with _store() as store:
        revoked = store.revoke(key_id)
    if not revoked:
        raise click.ClickException(f"There is no key {key_id}; it may have expired, or be set in MASKFLEET_API_KEYS.")
    click.echo(json.dumps({"id": key_id, "revoked": True}) if as_json else f"Key {key_id} is revoked.")


def _document(key: Key) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
    }


@contextmanager
def _store() -> Iterator[KeyStore]:
    with reporting_errors():
        settings = with_local_stack(SharedSettings())
        with naming_redis(settings):
            client = connect(settings)
            Schema(client).check()
            yield KeyStore(client)
