"""What a run over many photographs has done, in its output folder: so the same command goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from maskfleet.cli.photos import PROGRESS_FILE
from maskfleet.jobs.errors import InvalidRequest

#: The files and folders of one photograph's results.
_RESULTS = (
    *(
        "coco.json",
        "coco_polygons.json",
        "label_map.png",
        "label_map.tif",
        "masks.zip",
        "manifest.json",
        "overlay.png",
        "overlay.webp",
        "overlay.jpg",
    ),
    *("outlines.geojson", "outlines.svg", "yolo.txt", "panoptic.png", "panoptic.json"),
)
_RESULT_FOLDERS = ("masks", "logits")


class Entry(BaseModel):
    """The last that is known of one photograph.

    version: of the photograph.  options: a digest of what was asked for.  folder: of its results, below the output
    folder.  failures: how often it has failed.  job_id: of a run through a server.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    photo: str
    version: str
    options: str
    folder: str
    status: Literal["sent", "succeeded", "failed"]
    masks: int | None = None
    job_id: str | None = None
    code: str | None = None
    detail: str | None = None
    failures: int = 0


class SentBatch(BaseModel):
    """A batch that a server makes of a folder in S3.

    batch: the folder, as it was named.  number: counts the batches that were made of it with these options.
    outcomes: whether all of its images are known, by the file OUTCOMES.  given_up: there was something wrong with it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    batch: str
    options: str
    number: int
    batch_id: str
    outcomes: bool = False
    given_up: bool = False


_LINE: TypeAdapter[Entry | SentBatch] = TypeAdapter(Entry | SentBatch)


class ProgressFile:
    """The progress of the runs into one output folder, locked while it is open.

    Raises InvalidRequest (``output_in_use``) if another run writes into the folder.
    """

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._file = (out / PROGRESS_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise InvalidRequest(
                "output_in_use",
                f"Another command is writing into {out}. Wait until it has ended, or use another --out.",
            ) from error
        self._file.seek(0)
        text = self._file.read()
        if text and not text.endswith("\n"):  # half a line, of a run that was killed
            self._file.write("\n")
        self.entries: dict[str, Entry] = {}
        self.batches: dict[tuple[str, str], SentBatch] = {}
        #: The batch that the file OUTCOMES is about.
        self.outcomes_of = ""
        for line in text.splitlines():
            with suppress(ValidationError):  # the first line, and half lines
                self._keep(_LINE.validate_json(line))
        self.run_id = self._run_id(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def is_done(self, photo: str, version: str, options: str) -> bool:
        """Return whether the photograph's results are there, made from this version of it and with these options."""
        entry = self.entries.get(photo)
        return (
            entry is not None
            and entry.status == "succeeded"
            and (entry.version, entry.options) == (version, options)
            and (self._out / entry.folder / "coco.json").is_file()
        )

    def _keep(self, entry: Entry | SentBatch) -> None:
        if isinstance(entry, Entry):
            self.entries[entry.photo] = entry
        else:
            self.batches[entry.batch, entry.options] = entry
            self.outcomes_of = entry.batch_id if entry.outcomes else self.outcomes_of

    def write(self, entry: Entry | SentBatch) -> None:
        """Record what is known of a photograph or of a batch now."""
        self._keep(entry)
        self._append(entry.model_dump_json(exclude_none=True, exclude_defaults=True))

    def clear(self, entry: Entry) -> None:
        """Remove what an earlier run wrote for a photograph, so that none of it is taken for new."""
        folder = self._out / entry.folder
        for name in _RESULTS:
            (folder / name).unlink(missing_ok=True)
        for name in _RESULT_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)

    def _run_id(self, text: str) -> str:
        """Return the folder's own id, with which the keys of its jobs begin."""
        for line in text.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                return str(json.loads(line)["run_id"])
        run_id = uuid.uuid4().hex
        self._append(json.dumps({"run_id": run_id}))
        return run_id

    def _append(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()
        os.fsync(self._file.fileno())
