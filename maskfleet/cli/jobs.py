"""The commands for jobs on a server: submit, status, wait, cancel, retry, delete, fetch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskfleet.cli.batch import batch
from maskfleet.cli.photos import WORDS, NamedPhoto, find_photos, photos_argument
from maskfleet.cli.server import connect, server_of, server_options
from maskfleet.cli.spec_options import build_spec, option_of, spec_options
from maskfleet.cli.terminal import (
    EXIT_SERVICE,
    Named,
    described,
    printable,
    progress_bars,
    reporting_errors,
    show_progress,
    summary,
)
from maskfleet.cli.through_server import note_demo, submit
from maskfleet.client.errors import ApiError, AuthenticationError, Unavailable
from maskfleet.client.submission import known_image, uploaded_image
from maskfleet.jobs.errors import InvalidRequest, JobError
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import JobView, Spec
from maskfleet.jobs.schema.spec import IMAGE_COMES_BESIDE, EventName, ImageSource, Inline, Priority

if TYPE_CHECKING:
    from maskfleet import Client, Job

model_option = click.option("--model", help="One of the server's models.  [default: the first]")
priority_option = click.option(
    "--priority",
    type=Named([str(priority) for priority in Priority]),
    help="interactive needs a key with the scope jobs:interactive.  [default: normal]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the job as one line of JSON.")
timeout_option = click.option(
    "--timeout", "timeout_s", type=float, metavar="SECONDS", help="Stop waiting after this time."
)


@click.command(
    "submit",
    help=f"""Send a job for each PHOTO.  Prints the jobs' ids; with --wait how they ended; with --out also their files.

    PHOTO is {WORDS}. Instead of PHOTO, --image-id or --upload-id names an image that the server has.

    With --out, one photo's files go into the folder itself; several get a folder each, as with `maskfleet batch`.
    The exit status is 0 if all went well, 1 if a job or some photos failed, 2 if nothing was sent.
    """,
)
@photos_argument
@click.option("--image-id", metavar="ID", help="An image that `maskfleet embed` made known, instead of PHOTO.")
@click.option("--upload-id", metavar="ID", help="An image that `maskfleet upload` sent, instead of PHOTO.")
@spec_options
@click.option(
    "--inline",
    type=Named([str(form) for form in Inline]),
    help="Show the masks in the job itself; needs --wait and --json.",
)
@model_option
@priority_option
@click.option("--start-deadline-s", type=int, help="Let the job expire unless it starts within this time.")
@click.option("--run-timeout-s", type=int, help="Fail the job if one attempt runs longer.")
@click.option("--webhook", "webhook_url", metavar="URL", help="The URL to send the job's webhooks to.")
@click.option(
    "--webhook-event",
    multiple=True,
    type=Named([str(name) for name in EventName]),
    help="An event to send; repeatable.  [default: all but started]",
)
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", help="Your own strings, returned with the job; repeatable."
)
@click.option("--idempotency-key", help="Submitting again with the same key returns the same job.  [default: random]")
@click.option("--wait", "and_wait", is_flag=True, help="Wait until the job has ended.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Wait, and write the result's files to this folder."
)
@timeout_option
@json_option
@server_options
@click.pass_context
def submit_command(
    context: click.Context,
    /,
    words: tuple[str, ...],
    image_id: str | None,
    upload_id: str | None,
    mode: str | None,
    webhook_url: str | None,
    webhook_event: tuple[str, ...],
    metadata: tuple[str, ...],
    idempotency_key: str | None,
    and_wait: bool,
    out: Path | None,
    timeout_s: float | None,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
    **options: Any,  # Any: what spec_options added, on its way to build_spec
) -> None:
    with reporting_errors(option_of), connect(api_url, api_key) as client:
        if webhook_url:
            options["webhook"] = {"url": webhook_url, **({"events": webhook_event} if webhook_event else {})}
        if metadata:
            options["metadata"] = dict(_pair(pair) for pair in metadata)
        if [bool(words), image_id is not None, upload_id is not None].count(True) != 1:
            raise InvalidRequest.at(
                "/image", "invalid_spec", "Give either PHOTO, --image-id or --upload-id.", fault="invalid_option"
            )
        spec = build_spec(mode, _image(image_id, upload_id), **options)
        found = find_photos(words, leave_out=out) if words else None
        if found is not None and found.are_many:
            if idempotency_key:
                raise click.UsageError("--idempotency-key is for one photo: each job has a key of its own.")
            if out is not None and timeout_s is not None:
                raise click.UsageError("--timeout is for one photo, or for many without --out.")
            if out is not None:
                context.exit(batch(found.photos, spec, out, server_of(api_url, api_key), as_json=as_json))
            context.exit(_submit_each(client, spec, found.photos, and_wait, timeout_s, as_json))
        if found is None:
            job = client.submit(spec, idempotency_key=idempotency_key)
        else:
            job = submit(client, spec, found.photos[0], idempotency_key)
        note_demo(job)
        if and_wait or out is not None:
            job = wait_for_job(client, job.id, timeout_s)
            if options.get("inline") is not None:
                job = client.get(job.id)
        if out is not None and job.status == "succeeded":
            fetch_files(client, job.id, out)
    if as_json or and_wait or out is not None:
        end_job(job, as_json=as_json, must_succeed=and_wait or out is not None, out=out)
    else:
        click.echo(job.id)


def _image(image_id: str | None, upload_id: str | None) -> ImageSource:
    """Return the source of an image that the server has, or of one that is sent beside the job."""
    if image_id is not None:
        return known_image(image_id)
    return IMAGE_COMES_BESIDE if upload_id is None else uploaded_image(upload_id)


def _submit_each(
    client: Client,
    spec: Spec,
    photos: Sequence[NamedPhoto],
    and_wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Send a job for each photo; list those that fail, do the rest, and return the exit status."""
    jobs: list[Job] = []
    status = 0
    for photo in photos:
        try:
            job = submit(client, spec, photo)
        except (JobError, ApiError, OSError) as error:
            if isinstance(error, AuthenticationError | Unavailable):
                raise
            status = EXIT_SERVICE
            what = described(error, option_of) if isinstance(error, JobError | ApiError) else f"file_error: {error}"
            click.echo(f"{printable(photo.name)}: {what}", err=True)
            continue
        if not jobs:
            note_demo(job)
        jobs.append(job)
        if not and_wait:
            click.echo(job.model_dump_json() if as_json else job.id)
    for job in jobs if and_wait else ():
        ended = wait_for_job(client, job.id, timeout_s)
        click.echo(ended.model_dump_json() if as_json else summary(ended))
        status = status if ended.status == "succeeded" else EXIT_SERVICE
    return status


@click.command("status")
@click.argument("job_id", metavar="ID")
@json_option
@server_options
def status_command(job_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Show the job ID."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = client.get(job_id)
    end_job(job, as_json=as_json, must_succeed=False)


@click.command("wait")
@click.argument("job_id", metavar="ID")
@timeout_option
@json_option
@server_options
def wait_command(job_id: str, timeout_s: float | None, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Wait until the job ID has ended; the exit status is 0 when it succeeded."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = wait_for_job(client, job_id, timeout_s)
    end_job(job, as_json=as_json, must_succeed=True)


@click.command("cancel")
@click.argument("job_id", metavar="ID")
@json_option
@server_options
def cancel_command(job_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Cancel the job ID: at once when it is queued, within seconds when it runs."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = client.cancel(job_id)
    end_job(job, as_json=as_json, must_succeed=False)


@click.command("retry")
@click.argument("job_id", metavar="ID")
@json_option
@server_options
def retry_command(job_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Queue the failed job ID again."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = client.retry(job_id)
    end_job(job, as_json=as_json, must_succeed=False)


@click.command("delete")
@click.argument("job_id", metavar="ID")
@json_option
@server_options
def delete_command(job_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Delete the ended job ID and everything it wrote, but not the image that was sent with it."""
    with reporting_errors(), connect(api_url, api_key) as client:
        client.delete(job_id)
    if as_json:
        click.echo(json.dumps({"id": job_id, "deleted": True}))


@click.command("fetch")
@click.argument("job_id", metavar="ID")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write the files.  [default: the job's id]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one line of JSON.")
@server_options
def fetch_command(job_id: str, out: Path | None, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Download the result of the job ID and check each file's sha256.  Prints the files' paths."""
    folder = out or Path(job_id)
    with reporting_errors(), connect(api_url, api_key) as client:
        manifest = fetch_files(client, job_id, folder)
    if as_json:
        click.echo(manifest.model_dump_json(exclude={"files": {"__all__": {"url"}}}))
        return
    for file in manifest.files:
        click.echo(folder / file.name)
    click.echo(folder / "manifest.json")


def fetch_files(client: Client, job_id: str, folder: Path) -> Manifest:
    with progress_bars() as bars:
        task = bars.add_task("fetching", total=None)
        return client.fetch(
            job_id,
            folder,
            on_file=lambda name, done, total: bars.update(task, description=name, completed=done, total=total),
        )


def wait_for_job(client: Client, job_id: str, timeout_s: float | None) -> Job:
    with progress_bars() as bars:
        task = bars.add_task(job_id, total=None)
        return client.wait(job_id, timeout_s=timeout_s, on_progress=lambda job: show_progress(bars, task, job))


def end_job(job: JobView, *, as_json: bool, must_succeed: bool, out: Path | None = None) -> None:
    """Print a job, and what to do next; exit with status 1 if it had to succeed and did not."""
    if as_json:
        click.echo(job.model_dump_json())
    else:
        click.echo(summary(job))
        if job.status == "succeeded":
            click.echo(f"  files in {out}" if out is not None else f"  its files: maskfleet fetch {job.id}")
    if must_succeed and job.status != "succeeded":
        if job.error is not None:
            click.echo(f"{job.error.code}: {job.error.detail}", err=True)
        sys.exit(EXIT_SERVICE)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest.at(
            "/metadata", "invalid_spec", f"{text!r} does not have the form KEY=VALUE.", fault="invalid_option"
        )
    return key, value
