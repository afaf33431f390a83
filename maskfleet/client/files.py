"""The files of a result on their way to this machine: each is checked before it gets its name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

from maskfleet.client.errors import DamagedFile, Refused
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Expected:
    """A file to be downloaded.  sha256: None if nobody has said."""

    name: str
    url: str
    size: int
    sha256: str | None = None

    @classmethod
    def of(cls, file: ManifestFile) -> Self:
        """Return a result's file.  Raises Refused when the manifest has no link to it."""
        if file.url is None:
            raise Refused("no_link", f"The manifest has no link for {file.name}; request it from the API again.")
        return cls(file.name, file.url, file.size, file.sha256)


class Arriving:
    """A file that is downloaded, piece by piece: into a folder, or into memory."""

    def __init__(self, file: Expected, folder: Path | None) -> None:
        """Raises DamagedFile when its name leads out of the folder."""
        self._file = file
        self._path = None if folder is None else folder / safe_path(file.name)
        self._written: IO[bytes] | None = None
        self._pieces: list[bytes] = []
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, piece: bytes) -> None:
        """Take the next piece."""
        self._digest.update(piece)
        self._size += len(piece)
        if self._path is None:
            self._pieces.append(piece)
        else:
            self._part().write(piece)

    def finish(self) -> bytes:
        """Check the file and give it its name, or return its bytes.  Raises DamagedFile."""
        if self._size != self._file.size or self._file.sha256 not in (None, self._digest.hexdigest()):
            raise DamagedFile("damaged_file", f"{self._file.name} does not match the manifest. Fetch it again.")
        if self._path is not None:
            self._part().close()
            self._part_path(self._path).replace(self._path)
        return b"".join(self._pieces)

    def discard(self) -> None:
        """Remove what has not got its name.  May always be called."""
        if self._written is not None and self._path is not None:
            self._written.close()
            self._part_path(self._path).unlink(missing_ok=True)

    def _part(self) -> IO[bytes]:
        if self._written is None and self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._written = self._part_path(self._path).open("wb")
        assert self._written is not None  # noqa: S101 - only called with a path
        return self._written

    @staticmethod
    def _part_path(path: Path) -> Path:
        return path.with_name(f"{path.name}.part")


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json``, without its short-lived links: the last file of a result."""
    folder.mkdir(parents=True, exist_ok=True)
    text = manifest.model_dump_json(indent=2, exclude={"files": {"__all__": {"url"}}})
    (folder / MANIFEST).write_text(text + "\n")


def is_fetched(job_id: str, folder: Path) -> bool:
    """Whether a folder holds the whole result of this job: its manifest is written last."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes()).job_id == job_id
    except (OSError, ValueError):
        return False


def safe_path(name: str) -> Path:
    """Return a file's name as a path inside its folder.  Names come from the network.  Raises DamagedFile."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DamagedFile("damaged_file", f"The manifest names a file {name!r} outside the result's folder.")
    return Path(*path.parts)
