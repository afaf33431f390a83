"""The commands that talk to a server: submit, status, wait, cancel, retry, delete, fetch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from maskfleet import Client
from maskfleet.cli.server import connect, server_options
from maskfleet.cli.spec_options import build_spec, spec_options
from maskfleet.cli.terminal import EXIT_SERVICE, progress_bars, reporting_errors, show_progress, summary
from maskfleet.client.submission import known_image, source_of
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import EventName, Inline, Priority

model_option = click.option("--model", help="One of the server's models.  [default: the first]")
priority_option = click.option(
    "--priority",
    type=click.Choice([str(priority) for priority in Priority]),
    help="interactive needs a key with the scope jobs:interactive.  [default: normal]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print the job as one line of JSON.")
_timeout_option = click.option(
    "--timeout", "timeout_s", type=float, metavar="SECONDS", help="Stop waiting after this time."
)


@click.command("submit")
@click.argument("photo", required=False)
@click.option("--image-id", metavar="ID", help="An image that `maskfleet embed` made known, instead of PHOTO.")
@spec_options
@click.option(
    "--inline",
    type=click.Choice([str(form) for form in Inline]),
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
    type=click.Choice([str(name) for name in EventName]),
    help="An event to send; repeatable.  [default: all but started]",
)
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", help="Your own strings, returned with the job; repeatable."
)
@click.option("--idempotency-key", help="Submitting again with the same key returns the same job.  [default: random]")
@click.option("--wait", "and_wait", is_flag=True, help="Wait until the job has ended.")
@_timeout_option
@_json_option
@server_options
def submit_command(
    photo: str | None,
    image_id: str | None,
    mode: str | None,
    webhook_url: str | None,
    webhook_event: tuple[str, ...],
    metadata: tuple[str, ...],
    idempotency_key: str | None,
    and_wait: bool,
    timeout_s: float | None,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
    **options: Any,  # Any: what spec_options added, on its way to build_spec
) -> None:
    """Send a job for PHOTO: a file, s3://bucket/key, or an http(s) address.  Prints the job's id.

    Instead of PHOTO, --image-id names an image that is known to the server.
    """
    with reporting_errors(), connect(api_url, api_key) as client:
        if webhook_url:
            options["webhook"] = {"url": webhook_url, **({"events": webhook_event} if webhook_event else {})}
        if metadata:
            options["metadata"] = dict(_pair(pair) for pair in metadata)
        if (photo is None) == (image_id is None):
            raise InvalidRequest.at(
                "/image", "invalid_spec", "Give either PHOTO or --image-id.", fault="invalid_option"
            )
        source, data = source_of(photo) if photo is not None else (known_image(str(image_id)), None)
        spec = build_spec(mode, source, **options)
        job = client.submit(spec, photo=data, idempotency_key=idempotency_key)
        if and_wait:
            job = _wait(client, job.id, timeout_s)
            if options.get("inline") is not None:
                job = client.get(job.id)
    if as_json or and_wait:
        _end(job, as_json=as_json, must_succeed=and_wait)
    else:
        click.echo(job.id)


@click.command("status")
@click.argument("job_id", metavar="ID")
@_json_option
@server_options
def status_command(job_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Show the job ID."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = client.get(job_id)
    _end(job, as_json=as_json, must_succeed=False)


@click.command("wait")
@click.argument("job_id", metavar="ID")
@_timeout_option
@_json_option
@server_options
def wait_command(job_id: str, timeout_s: float | None, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Wait until the job ID has ended; the exit status is 0 when it succeeded."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = _wait(client, job_id, timeout_s)
    _end(job, as_json=as_json, must_succeed=True)


@click.command("cancel")
@click.argument("job_id", metavar="ID")
@_json_option
@server_options
def cancel_command(job_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Cancel the job ID: at once when it is queued, within seconds when it runs."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = client.cancel(job_id)
    _end(job, as_json=as_json, must_succeed=False)


@click.command("retry")
@click.argument("job_id", metavar="ID")
@_json_option
@server_options
def retry_command(job_id: str, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Queue the failed job ID again."""
    with reporting_errors(), connect(api_url, api_key) as client:
        job = client.retry(job_id)
    _end(job, as_json=as_json, must_succeed=False)


@click.command("delete")
@click.argument("job_id", metavar="ID")
@server_options
def delete_command(job_id: str, api_url: str | None, api_key: str | None) -> None:
    """Delete the ended job ID and everything it wrote, but not the image that was sent with it."""
    with reporting_errors(), connect(api_url, api_key) as client:
        client.delete(job_id)


@click.command("fetch")
@click.argument("job_id", metavar="ID")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write the files.  [default: the job's id]"
)
@server_options
def fetch_command(job_id: str, out: Path | None, api_url: str | None, api_key: str | None) -> None:
    """Download the result of the job ID and check each file's sha256.  Prints the files' paths."""
    folder = out or Path(job_id)
    with reporting_errors(), connect(api_url, api_key) as client, progress_bars() as bars:
        task = bars.add_task("fetching", total=None)
        manifest = client.fetch(
            job_id,
            folder,
            on_file=lambda name, done, total: bars.update(task, description=name, completed=done, total=total),
        )
    for file in manifest.files:
        click.echo(folder / file.name)
    click.echo(folder / "manifest.json")


def _wait(client: Client, job_id: str, timeout_s: float | None) -> JobView:
    with progress_bars() as bars:
        task = bars.add_task(job_id, total=None)
        return client.wait(job_id, timeout_s=timeout_s, on_progress=lambda job: show_progress(bars, task, job))


def _end(job: JobView, *, as_json: bool, must_succeed: bool) -> None:
    click.echo(job.model_dump_json() if as_json else summary(job))
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
