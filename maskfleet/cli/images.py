"""``maskfleet embed``: encode a photo in advance."""

from __future__ import annotations

import sys

import click

from maskfleet.cli.jobs import model_option, priority_option
from maskfleet.cli.server import connect, server_options
from maskfleet.cli.terminal import EXIT_SERVICE, reporting_errors
from maskfleet.client.submission import JobOptionFields


@click.command("embed")
@click.argument("photo")
@model_option
@priority_option
@click.option("--wait", "and_wait", is_flag=True, help="Wait until it is encoded.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Stop waiting after this time.")
@click.option("--json", "as_json", is_flag=True, help="Print the image as one line of JSON.")
@server_options
def embed_command(
    photo: str,
    model: str | None,
    priority: str | None,
    and_wait: bool,
    timeout_s: float | None,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
) -> None:
    """Encode PHOTO in advance: a file, s3://bucket/key, or an http(s) address.  Prints the image's id.

    `maskfleet submit --image-id` then takes the id, also before the photo is encoded.
    """
    options: JobOptionFields = {}
    if model is not None:
        options["model"] = model
    if priority is not None:
        options["priority"] = priority  # type: ignore[typeddict-item]  # click's choices are these names
    with reporting_errors(), connect(api_url, api_key) as client:
        image = client.embed_image(photo, **options)
        if and_wait:
            client.wait(image.job_id, timeout_s=timeout_s)
            image = client.image(image.image_id)
    click.echo(image.model_dump_json() if as_json else image.image_id)
    if and_wait and image.status != "succeeded":
        if image.error is not None:
            click.echo(f"{image.error.code}: {image.error.detail}", err=True)
        sys.exit(EXIT_SERVICE)
