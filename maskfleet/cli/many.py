"""A command over many photographs: what was done before is skipped, what fails is listed, and the rest is done."""

from __future__ import annotations

import hashlib
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from maskfleet.cli.merged import merge_coco
from maskfleet.cli.photos import NamedPhoto
from maskfleet.cli.progress_file import Entry, ProgressFile
from maskfleet.cli.terminal import EXIT_CALLER, EXIT_SERVICE, counted, printable, tell
from maskfleet.client.errors import ApiError, AuthenticationError, Unavailable
from maskfleet.jobs.errors import JobError

#: As a shell reports a command that Ctrl-C ended.
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Task:
    """One photograph to do.

    folder: where its results go.  earlier: what an earlier run of the same photograph and options left.  key: the same
    when a run is repeated, so that nothing is sent twice; another after a failure.  sent: to be called with the id of
    the job that was made for it.
    """

    photo: NamedPhoto
    folder: Path
    earlier: Entry | None
    key: str
    sent: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Did:
    """What came of a task that succeeded."""

    masks: int
    best_score: float | None = None
    job_id: str | None = None


Work = Callable[[Task], Did]
_Ended = tuple[Entry, Task, Did | Exception]


class Run:
    """A run over photographs into a folder.

    options: a digest of what is asked for; results of other options are made again.
    work: does one photograph.  parallel: how many at once, each in a thread; with 1, all in this one.
    thing: what a photograph is called.  join: makes one result of all that is done, and says in a few words what that
    is; None for a COCO dataset.  After Ctrl-C it is not called.
    """

    def __init__(
        self,
        out: Path,
        options: str,
        work: Work,
        *,
        parallel: int = 1,
        as_json: bool = False,
        thing: str = "photo",
        join: Callable[[Sequence[Entry]], str] | None = None,
    ) -> None:
        self._thing = thing
        self._join = join
        self._out = out
        self._options = options
        self._work = work
        self._parallel = parallel
        self._as_json = as_json
        self._recording = threading.Lock()

    def do(self, photos: Sequence[NamedPhoto]) -> int:
        """Do what is not done yet, merge all datasets, and return the exit status: 0, or 1 if any failed.

        It is 2 if the server does not accept the key, and 130 after Ctrl-C.  Raises InvalidRequest (``output_in_use``).
        """
        with ProgressFile(self._out) as progress:
            first = self._first_entries(photos, progress)
            waiting = []
            for photo in photos:
                if not self._is_done(first[photo.name], progress):
                    waiting.append(photo)
                elif self._as_json:
                    self._say(progress.entries[first[photo.name].photo], photo, None, before=True)
            skipped = len(photos) - len(waiting)
            if skipped:
                click.echo(f"{counted(skipped, self._thing)} of {len(photos):,} had been done before.", err=True)
            status, stopped = self._do(waiting, first, progress, skipped)
            known = [progress.entries.get(entry.photo, entry) for entry in first.values()]
            done = [entry for entry in known if self._is_done(entry, progress)]
            if self._join is None:
                joined = self._merge_coco(done)
            else:
                joined = self._join(done) if status != EXIT_INTERRUPTED else f"in {self._out}"
        click.echo(f"{len(done):,} of {counted(len(photos), self._thing)} done: {joined}", err=True)
        failed = [entry for entry in known if entry.status == "failed"]
        if failed:
            click.echo(f"{counted(len(failed), self._thing)} failed; the same command tries them again:", err=True)
        for entry in failed:
            click.echo(f"  {printable(f'{entry.photo}: {entry.code}: {entry.detail}')}", err=True)
        if stopped:
            click.echo(f"{stopped}\nThe same command goes on from here.", err=True)
        return status or (EXIT_SERVICE if len(done) < len(photos) else 0)

    def _merge_coco(self, done: Sequence[Entry]) -> str:
        _, annotations = merge_coco(self._out, ((entry.folder, self._out / entry.folder) for entry in done))
        return f"{counted(annotations, 'mask')} in {self._out}, all together in {self._out / 'coco.json'}"

    def _do(
        self, waiting: Sequence[NamedPhoto], first: dict[str, Entry], progress: ProgressFile, skipped: int
    ) -> tuple[int, str]:
        """Do the photographs; return an exit status other than 0 and the reason, if it was stopped before the end."""
        tasks = [(first[photo.name], self._task(photo, first[photo.name], progress)) for photo in waiting]
        with bars_with_time_left() as bars:
            bar = bars.add_task(f"{self._thing}s", total=len(waiting) + skipped, completed=skipped)
            try:
                for entry, task, outcome in self._in_threads(tasks) if self._parallel > 1 else self._in_turn(tasks):
                    if isinstance(outcome, ApiError) and _ends_all(outcome):
                        status = EXIT_CALLER if isinstance(outcome, AuthenticationError) else EXIT_SERVICE
                        return status, f"Stopped. {outcome}"
                    self._record(entry, task, outcome, progress)
                    bars.advance(bar)
            except KeyboardInterrupt:
                return EXIT_INTERRUPTED, "Interrupted."
        return 0, ""

    def _in_turn(self, tasks: Sequence[tuple[Entry, Task]]) -> Iterator[_Ended]:
        for entry, task in tasks:
            yield entry, task, self._outcome(task)

    def _in_threads(self, tasks: Sequence[tuple[Entry, Task]]) -> Iterator[_Ended]:
        """Do the tasks side by side.  The threads are daemons: Ctrl-C does not wait for what they wait for."""
        todo: queue.SimpleQueue[tuple[Entry, Task]] = queue.SimpleQueue()
        ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        for each in tasks:
            todo.put(each)

        def go_on() -> None:
            while True:
                try:
                    entry, task = todo.get_nowait()
                except queue.Empty:
                    return
                ended.put((entry, task, self._outcome(task)))

        for _ in range(min(self._parallel, len(tasks))):
            threading.Thread(target=go_on, daemon=True).start()
        try:
            for _ in tasks:
                yield ended.get()
        finally:
            while not todo.empty():
                todo.get_nowait()

    def _outcome(self, task: Task) -> Did | Exception:
        try:
            return self._work(task)
        except (JobError, ApiError, OSError) as error:
            return error

    def _first_entries(self, photos: Sequence[NamedPhoto], progress: ProgressFile) -> dict[str, Entry]:
        """Return what is recorded first of each photograph: in the folder that it has, or one that no other has."""
        taken = {entry.folder for entry in progress.entries.values()}
        first: dict[str, Entry] = {}
        for photo in photos:
            name = str(photo.path.resolve()) if photo.path else photo.name
            earlier = progress.entries.get(name)
            folder = earlier.folder if earlier else str(photo.folder)
            while not earlier and folder in taken:
                folder += "_"
            taken.add(folder)
            try:
                version = photo.version
            except OSError:
                version = ""  # it is gone, as its task will say
            first[photo.name] = Entry(photo=name, version=version, options=self._options, folder=folder, status="sent")
        return first

    def _is_done(self, entry: Entry, progress: ProgressFile) -> bool:
        return progress.is_done(entry.photo, entry.version, self._options)

    def _task(self, photo: NamedPhoto, entry: Entry, progress: ProgressFile) -> Task:
        earlier = progress.entries.get(entry.photo)
        if earlier is not None and (earlier.version, earlier.options) != (entry.version, entry.options):
            progress.clear(earlier)
            earlier = None

        failures = earlier.failures if earlier else 0
        key = "\n".join((progress.run_id, entry.photo, entry.version, entry.options, str(failures)))

        def sent(job_id: str) -> None:
            with self._recording:
                progress.write(entry.model_copy(update={"job_id": job_id, "failures": failures}))

        return Task(photo, self._out / entry.folder, earlier, hashlib.sha256(key.encode()).hexdigest(), sent)

    def _record(self, entry: Entry, task: Task, outcome: Did | Exception, progress: ProgressFile) -> None:
        if isinstance(outcome, Did):
            ended: dict[str, object] = {"status": "succeeded", "masks": outcome.masks, "job_id": outcome.job_id}
        else:
            code, detail = _reason(outcome)
            failures = (task.earlier.failures if task.earlier else 0) + 1
            ended = {"status": "failed", "code": code, "detail": detail, "failures": failures}
        entry = entry.model_copy(update=ended)
        with self._recording:
            progress.write(entry)
        self._say(entry, task.photo, outcome if isinstance(outcome, Did) else None)

    def _say(self, entry: Entry, photo: NamedPhoto, did: Did | None, *, before: bool = False) -> None:
        folder = self._out / entry.folder
        if self._as_json:
            line: dict[str, object] = {self._thing: photo.name, "status": entry.status}
            if entry.status == "failed":
                line |= {"code": entry.code, "detail": entry.detail}
            else:
                line |= {"masks": entry.masks, "folder": str(folder), "done_before": before}
            if entry.job_id:
                line["job_id"] = entry.job_id
            if did and did.best_score is not None:
                line["best_score"] = did.best_score
            tell(json.dumps(line))
        elif entry.status == "failed":
            tell(printable(f"{photo.name}: failed, {entry.code}: {entry.detail}"), err=True)
        else:
            tell(f"{printable(photo.name)}: {counted(entry.masks or 0, 'mask')}, {folder}")


def _ends_all(error: ApiError) -> bool:
    """Return whether an error would meet every further photograph, too."""
    return isinstance(error, AuthenticationError) or (
        isinstance(error, Unavailable) and error.code != "download_broken_off"
    )


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, JobError | ApiError):
        return error.code, error.detail
    return "file_error", str(error)


def bars_with_time_left() -> Progress:
    """Return a bar with the time that is left, on stderr; it prints nothing if that is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=sys.stdout.isatty(),  # a file gets its lines, not the terminal
        disable=not console.is_terminal,
    )
