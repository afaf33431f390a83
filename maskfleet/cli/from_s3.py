"""``maskfleet batch s3://bucket/folder/``: the server finds the images; their results come into a folder here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
from pydantic import ConfigDict, ValidationError

from maskfleet import Client
from maskfleet.cli.many import EXIT_INTERRUPTED, Did, Run, Task, bars_with_time_left
from maskfleet.cli.photos import photos_below
from maskfleet.cli.progress_file import ProgressFile, SentBatch
from maskfleet.cli.server import Server, say
from maskfleet.cli.spec_options import digest_of
from maskfleet.cli.terminal import EXIT_SERVICE
from maskfleet.cli.through_server import PhotoFailed, Seldom, ServerWork, note_model
from maskfleet.client.errors import NotFound
from maskfleet.client.submission import JobFields
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.batch import BatchFailure, BatchView, Expansion
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.status import Status

#: Files that the server makes of all results.  Its coco.json is not among them: here one is made of the folders.
OUTCOMES = "outcomes.jsonl"
_MADE_OF_ALL = (OUTCOMES, "outlines.geojson")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder in S3, or what of it has names of a pattern."""

    word: str

    @property
    def prefix(self) -> str:
        return self.word.rpartition("/")[0] + "/"

    @property
    def pattern(self) -> str:
        return self.word.rpartition("/")[2] or "*"


class _Outcome(BatchFailure):
    """A line of OUTCOMES: how an image's job ended."""

    model_config = ConfigDict(extra="ignore")

    masks: int | None = None


class FolderWork:
    """Fetches what a batch made of each image; an image that failed before is sent again, as a job of its own.

    one_by_one: does that.  outcomes: of the batch, by the image's address.
    """

    def __init__(self, one_by_one: ServerWork, outcomes: Mapping[str, _Outcome]) -> None:
        self._one_by_one = one_by_one
        self._outcomes = outcomes

    def do(self, task: Task) -> Did:
        """Fetch an image's result.  Raises ApiError, OSError."""
        outcome, earlier = self._outcomes[task.photo.name], task.earlier
        if earlier is not None and earlier.status == "sent":
            return self._one_by_one.do(task)
        if outcome.status == Status.SUCCEEDED and outcome.job_id:
            with suppress(NotFound):  # the server keeps it for a time only
                manifest = self._one_by_one.client().fetch(outcome.job_id, task.folder)
                scores = [mask.predicted_iou for mask in manifest.masks]
                return Did(len(scores), max(scores, default=None), outcome.job_id)
        elif earlier is None:
            why = outcome.detail or f"The job {outcome.job_id} was {outcome.status}."
            raise PhotoFailed(outcome.code or outcome.status, why)
        return self._one_by_one.do(task)


def batch_from_s3(folder: Folder, spec: Spec, out: Path, server: Server, *, parallel: int, as_json: bool) -> int:
    """Have a server segment a folder in S3, fetch the results, and return the exit status.

    Raises ApiError, InvalidRequest.
    """
    options = digest_of(spec)
    with server.client(say) as client:
        note_model(client, spec.model)
        try:
            outcomes, fault = _Batch(folder, spec, out, client, options).outcomes()
        except KeyboardInterrupt:
            click.echo("Interrupted. The server goes on; the same command comes back to it.", err=True)
            return EXIT_INTERRUPTED
    photos = photos_below(folder.prefix, list(outcomes))
    seldom = Seldom()
    one_by_one = ServerWork(lambda: server.client(seldom.say), spec)
    run = Run(out, options, FolderWork(one_by_one, outcomes).do, parallel=parallel, as_json=as_json)
    status = run.do(photos)
    if fault:
        click.echo(f"{fault}\nThe same command begins with the rest.", err=True)
    return status or (EXIT_SERVICE if fault else 0)


class _Batch:
    """The batch that a server makes of a folder: sent once, awaited, and read."""

    def __init__(self, folder: Folder, spec: Spec, out: Path, client: Client, options: str) -> None:
        self._folder, self._spec, self._out, self._client, self._options = folder, spec, out, client, options

    def outcomes(self) -> tuple[dict[str, _Outcome], str]:
        """Return how each image ended, by its address, and why there are not all of them; empty if there are."""
        with ProgressFile(self._out) as progress:
            sent = progress.batches.get((self._folder.word, self._options))
            known = sent is not None and sent.outcomes and progress.outcomes_of == sent.batch_id
            if known and (self._out / OUTCOMES).is_file():
                return self._read(), ""
            sent, batch = self._awaited(sent, progress)
            fault = _fault_of(batch)
            if batch.total == 0 and not fault:
                progress.write(sent.model_copy(update={"given_up": True}))
                raise InvalidRequest(
                    "no_photos", f"No object in {self._folder.prefix} has a name like {self._folder.pattern!r}."
                )
            self._client.fetch_batch(batch.id, self._out, only=_MADE_OF_ALL)
            progress.write(sent.model_copy(update={"given_up": True} if fault else {"outcomes": True}))
        return self._read(), fault

    def _awaited(self, sent: SentBatch | None, progress: ProgressFile) -> tuple[SentBatch, BatchView]:
        while True:
            if sent is None or sent.given_up:
                sent = self._send(progress, sent.number + 1 if sent else 1)
            try:
                return sent, self._wait(sent.batch_id)
            except NotFound:  # deleted, or it ended long ago
                sent = sent.model_copy(update={"given_up": True})

    def _send(self, progress: ProgressFile, number: int) -> SentBatch:
        key = "\n".join((progress.run_id, self._folder.word, self._options, str(number)))
        fields = cast("JobFields", self._spec.model_dump(exclude={"image"}, exclude_unset=True))
        made = self._client.submit_batch_source(
            prefix=self._folder.prefix,
            pattern=self._folder.pattern,
            idempotency_key=hashlib.sha256(key.encode()).hexdigest(),
            **fields,
        )
        sent = SentBatch(batch=self._folder.word, options=self._options, number=number, batch_id=made.id)
        progress.write(sent)
        say(
            f"The server finds and segments the images of {self._folder.word}. It goes on if this command is stopped; "
            f"to end it: maskfleet batches cancel {made.id}"
        )
        return sent

    def _wait(self, batch_id: str) -> BatchView:
        """Wait for the batch with a bar; how long it will take is shown once the server has counted the images."""
        with bars_with_time_left() as bars:
            bar = bars.add_task("images", total=None)

            def show(batch: BatchView) -> None:
                found = batch.expansion.found if batch.expansion else None
                bars.update(bar, completed=batch.done, total=found)

            return self._client.wait_batch(batch_id, on_progress=show)

    def _read(self) -> dict[str, _Outcome]:
        """Return the outcomes in the order of the images; the file has them in the order of their ends."""
        outcomes: list[_Outcome] = []
        with (self._out / OUTCOMES).open(encoding="utf-8") as lines:
            for line in lines:
                with suppress(ValidationError):
                    outcomes.append(_Outcome.model_validate_json(line))
        outcomes.sort(key=lambda one: one.number or 0)
        return {one.source or f"image {one.number}": one for one in outcomes}


def _fault_of(batch: BatchView) -> str:
    """Say why a batch is not about all images of its source; empty if it is."""
    if batch.expansion is None or batch.expansion.state == Expansion.DONE:
        return ""
    error = batch.expansion.error
    return f"{error.code}: {error.detail}" if error else f"The batch {batch.id} was canceled."
