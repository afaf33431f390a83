"""``maskfleet deliveries`` and ``redeliver``: show the deliveries of webhooks, and send webhooks again."""

from __future__ import annotations

from datetime import datetime

import click

from maskfleet.cli.server import connect, server_options
from maskfleet.cli.terminal import counted, delivery_summary, reporting_errors


class Time(click.ParamType[datetime]):
    """A time like 2026-01-02T03:00 or 2026-01-02T03:00:00Z; without an offset, in this machine's time zone."""

    name = "TIME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return datetime.fromisoformat(value.upper()).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time such as 2026-01-02T03:00:00Z.", param, ctx)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


@click.command("deliveries")
@click.argument("name", metavar="ID")
@_json_option
@server_options
def deliveries_command(name: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Show the webhooks of the job or batch ID, or the one webhook ID (msg_…), with every attempt and its response."""
    with reporting_errors(), connect(api_url, api_key) as client:
        found = (client.delivery(name),) if name.startswith("msg_") else client.deliveries(name)
    for delivery in found:
        click.echo(delivery.model_dump_json() if as_json else delivery_summary(delivery))


@click.command("redeliver")
@click.argument("delivery_id", metavar="[DELIVERY]", required=False)
@click.option("--from", "since", type=Time(), help="Instead of DELIVERY: every webhook that failed from this time on.")
@click.option("--to", "until", type=Time(), help="With --from: only up to this time.  [default: now]")
@click.option("--all", "every", is_flag=True, help="With --from: also those that were delivered.")
@_json_option
@server_options
def redeliver_command(
    delivery_id: str | None,
    since: datetime | None,
    until: datetime | None,
    every: bool,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
) -> None:
    """Send the webhook DELIVERY again now, under the same id; or, with --from, those of a time range."""
    if (delivery_id is None) == (since is None) or (delivery_id is not None and (until is not None or every)):
        raise click.UsageError("Give either DELIVERY or --from; --to and --all need --from.")
    with reporting_errors(), connect(api_url, api_key) as client:
        if since is None:
            queued = client.redeliver(str(delivery_id))
            click.echo(queued.model_dump_json() if as_json else delivery_summary(queued))
            return
        several = client.redeliver_range(since, until, only_failed=not every)
    for line in [several.model_dump_json()] if as_json else several.queued:
        click.echo(line)
    click.echo(f"{counted(len(several.queued), 'webhook')} will be sent again.", err=True)
    if several.more:
        click.echo("There may be more: repeat it in an hour.", err=True)
