"""``batches``: have the server segment all images under a prefix in S3, or in a manifest; show, cancel, delete."""

from __future__ import annotations

import json

import click

from maskfleet.cli.server import connect, server_options
from maskfleet.cli.terminal import counted, reporting_errors
from maskfleet.client.submission import JobFields
from maskfleet.jobs.schema.batch import BatchView

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("batches")
def batches_command() -> None:
    """Segment images that lie in S3 already, however many."""


@batches_command.command("create")
@click.argument("uri", metavar="S3_URI")
@click.option("--pattern", default="*", show_default=True, help="Which objects under the prefix, by their names.")
@click.option("--manifest", "is_manifest", is_flag=True, help="S3_URI is a manifest: one image a line, as JSON.")
@click.option("--output", "outputs", multiple=True, help="A format of the results; may be repeated.  [default: coco]")
@click.option("--model", help="A model of the server.  [default: its first]")
@_json_option
@server_options
def create_command(
    uri: str,
    pattern: str,
    is_manifest: bool,
    outputs: tuple[str, ...],
    model: str | None,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
) -> None:
    """Segment everything in each image under S3_URI, such as s3://bucket/photos/.  Prints the batch's id.

    The bucket must be one that the server's operator allows.
    """
    fields: JobFields = {"mode": "everything", "priority": "bulk"}
    if outputs:
        fields["outputs"] = outputs
    if model:
        fields["model"] = model
    with reporting_errors(), connect(api_url, api_key) as client:
        if is_manifest:
            batch = client.submit_batch_source(manifest=uri, **fields)
        else:
            batch = client.submit_batch_source(prefix=uri, pattern=pattern, **fields)
    click.echo(batch.model_dump_json() if as_json else batch.id)


@batches_command.command("show")
@click.argument("batch_id", metavar="ID")
@_json_option
@server_options
def show_command(batch_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Show how far a batch is."""
    with reporting_errors(), connect(api_url, api_key) as client:
        batch = client.batch(batch_id)
    click.echo(batch.model_dump_json() if as_json else _line(batch))


@batches_command.command("failures")
@click.argument("batch_id", metavar="ID")
@_json_option
@server_options
def failures_command(batch_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """List the images of a batch that have no result, and why."""
    with reporting_errors(), connect(api_url, api_key) as client:
        for one in client.batch_failures(batch_id):
            why = f"{one.code}: {one.detail}" if one.code else one.status
            click.echo(one.model_dump_json() if as_json else f"{one.number} {one.source or '-'} {why}")


@batches_command.command("cancel")
@click.argument("batch_id", metavar="ID")
@_json_option
@server_options
def cancel_command(batch_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Cancel a batch: its queued jobs end at once, running ones within seconds, and no further ones are created."""
    with reporting_errors(), connect(api_url, api_key) as client:
        batch = client.cancel_batch(batch_id)
    click.echo(batch.model_dump_json() if as_json else _line(batch))


@batches_command.command("delete")
@click.argument("batch_id", metavar="ID")
@_json_option
@server_options
def delete_command(batch_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Delete a batch that has ended, with its jobs and all that they wrote."""
    with reporting_errors(), connect(api_url, api_key) as client:
        client.delete_batch(batch_id)
    if as_json:
        click.echo(json.dumps({"id": batch_id, "deleted": True}))


def _line(batch: BatchView) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in batch.counts.model_dump().items() if count)
    found = f"; {counted(batch.expansion.listed, 'image')} found ({batch.expansion.state})" if batch.expansion else ""
    return f"{batch.id} {batch.status}: {counts or 'no jobs yet'}{found}"
