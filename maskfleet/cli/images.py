"""``maskfleet upload`` and ``embed``: bring photos to the server before the jobs that name them."""

from __future__ import annotations

import json
import sys

import click

from maskfleet.cli.jobs import model_option, priority_option
from maskfleet.cli.photos import WORDS, PhotoWord, find_photos, photos_argument
from maskfleet.cli.server import connect, server_options
from maskfleet.cli.spec_options import option_of
from maskfleet.cli.terminal import EXIT_SERVICE, printable, reporting_errors
from maskfleet.client.errors import ApiError, AuthenticationError, Unavailable
from maskfleet.client.submission import JobOptionFields
from maskfleet.jobs.errors import InvalidRequest


@click.command(
    "upload",
    help=f"""Upload each PHOTO.  Prints the uploads' ids, for `maskfleet submit --upload-id`.

    PHOTO is {WORDS}; but no address, which a job may name itself. The exit status is 1 if some failed.
    """,
)
@photos_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per photo.")
@server_options
def upload_command(words: tuple[str, ...], as_json: bool, api_url: str | None, api_key: str | None) -> None:
    failed = 0
    with reporting_errors(), connect(api_url, api_key) as client:
        for photo in find_photos(words).photos:
            if isinstance(photo.source, str):
                raise InvalidRequest("invalid_photo", f"{photo.name} is an address: a job may name it as it is.")
            try:
                upload_id = client.upload(photo.source)
            except (ApiError, OSError) as error:
                if isinstance(error, AuthenticationError | Unavailable):
                    raise
                failed += 1
                click.echo(f"{printable(photo.name)}: {error}", err=True)
                continue
            click.echo(json.dumps({"photo": photo.name, "upload_id": upload_id}) if as_json else upload_id)
    if failed:
        sys.exit(EXIT_SERVICE)


@click.command("embed")
@click.argument("photo", type=PhotoWord())
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
    """Encode PHOTO in advance: a file, s3://bucket/key, an http(s) address, or -.  Prints the image's id.

    `maskfleet submit --image-id` then takes the id, also before the photo is encoded.
    """
    options: JobOptionFields = {}
    if model is not None:
        options["model"] = model
    if priority is not None:
        options["priority"] = priority  # type: ignore[typeddict-item]  # click's choices are these names
    with reporting_errors(option_of), connect(api_url, api_key) as client:
        found = find_photos([photo])
        if found.are_many:
            raise InvalidRequest("invalid_photo", f"{photo} is more than one photo. Encode one at a time.")
        image = client.embed_image(found.photos[0].source, **options)
        if and_wait:
            client.wait(image.job_id, timeout_s=timeout_s)
            image = client.image(image.image_id)
    click.echo(image.model_dump_json() if as_json else image.image_id)
    if and_wait and image.status != "succeeded":
        if image.error is not None:
            click.echo(f"{image.error.code}: {image.error.detail}", err=True)
        sys.exit(EXIT_SERVICE)
