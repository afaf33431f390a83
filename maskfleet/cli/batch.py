"""``maskfleet batch``: many photos through a server, from a folder to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from maskfleet.cli.from_s3 import Folder, batch_from_s3
from maskfleet.cli.many import Run
from maskfleet.cli.photos import WORDS, NamedPhoto, find_photos, names_many_objects, photos_argument
from maskfleet.cli.server import Server, say, server_of, server_options
from maskfleet.cli.spec_options import build_spec, digest_of, option_of, spec_options
from maskfleet.cli.terminal import Named, reporting_errors
from maskfleet.cli.through_server import Seldom, ServerWork, note_model
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import IMAGE_COMES_BESIDE, Output, Priority

#: Photos that are under way at once: enough for a few workers, and less than most quotas.
PARALLEL = 8

bulk_priority_option = click.option(
    "--priority",
    type=Named([str(priority) for priority in Priority]),
    default=str(Priority.BULK),
    show_default=True,
    help="interactive needs a key with the scope jobs:interactive.",
)


@click.command(
    "batch",
    help=f"""Segment each PHOTO through a server, and write masks and scores to a folder.

    PHOTO is {WORDS}.

    Each photo gets a folder of its own, and coco.json holds the masks of all. The same command again goes on where it
    stopped, and tries again what failed.

    Of s3://bucket/folder/ or 's3://bucket/folder/*.jpg', alone, the server finds the images, however many; the bucket
    must be one that its operator allows. Unless --outputs says otherwise only coco is written. `maskfleet batches
    create` does not wait.

    The exit status is 0 if all were segmented, 1 if some failed or the server is down, 2 if nothing was tried or the
    key is not accepted, 130 after Ctrl-C.
    """,
)
@photos_argument
@spec_options
@click.option("--model", help="One of the server's models.  [default: the first]")
@bulk_priority_option
@click.option("--start-deadline-s", type=int, help="Let a job expire unless it starts within this time.")
@click.option("--run-timeout-s", type=int, help="Fail a job if one attempt runs longer.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("masks-out"),
    show_default=True,
    help="Where to write the files.",
)
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=PARALLEL, show_default=True, help="Photos under way at once."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per photo.")
@server_options
@click.pass_context
def batch_command(
    context: click.Context,
    /,
    words: tuple[str, ...],
    mode: str | None,
    out: Path,
    parallel: int,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
    **options: object,
) -> None:
    with reporting_errors(option_of):
        server = server_of(api_url, api_key)
        spec = build_spec(mode, IMAGE_COMES_BESIDE, **options)  # type: ignore[arg-type]  # click's options, by name
        if any(map(names_many_objects, words)):
            if len(words) > 1:
                raise click.UsageError("The server finds what is in a folder in S3: name it alone.")
            if options["outputs"] is None:  # nobody looks at a picture of each of so many
                spec = spec.model_copy(update={"outputs": (Output.COCO,)})
            folder = Folder(words[0])
            context.exit(batch_from_s3(folder, _with_coco(spec), out, server, parallel=parallel, as_json=as_json))
        found = find_photos(words, leave_out=out)
        context.exit(batch(found.photos, spec, out, server, parallel=parallel, as_json=as_json))


def batch(
    photos: Sequence[NamedPhoto],
    spec: Spec,
    out: Path,
    server: Server,
    *,
    parallel: int = PARALLEL,
    as_json: bool = False,
) -> int:
    """Do photos through a server, and return the exit status.  Raises ApiError, InvalidRequest."""
    spec = _with_coco(spec)
    with server.client(say) as client:
        note_model(client, spec.model)  # also finds out whether the server answers, before any thread asks it
    seldom = Seldom()
    work = ServerWork(lambda: server.client(seldom.say), spec)
    return Run(out, digest_of(spec), work.do, parallel=parallel, as_json=as_json).do(photos)


def _with_coco(spec: Spec) -> Spec:
    """Return the spec with the output that all results are merged from."""
    return spec.model_copy(update={"outputs": tuple(dict.fromkeys((Output.COCO, *spec.outputs)))})
