"""Several files of a result in one, as a ZIP archive."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.worker.output.artifacts import Artifact

#: An archive is in memory until it is uploaded.  Some 25,000 masks of 18 MP fit, of the sizes in a photograph.
MAX_ARCHIVE_BYTES = 256 * 2**20
#: ZIP's earliest: the same files make the same archive.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_UNIX, _PLAIN_FILE = 3, 0o100644


class Archive:
    """An archive of files that are compressed already."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._buffer = io.BytesIO()
        self._zip = zipfile.ZipFile(self._buffer, "w", zipfile.ZIP_STORED)

    def add(self, artifact: Artifact) -> None:
        """Add a file.  Raises InvalidRequest (``archive_too_large``)."""
        if self._buffer.tell() + len(artifact.data) > MAX_ARCHIVE_BYTES:
            raise InvalidRequest(
                "archive_too_large",
                f"{self._name} would be larger than {MAX_ARCHIVE_BYTES // 2**20} MiB. "
                "Use png or coco instead, or raise the thresholds.",
            )
        entry = zipfile.ZipInfo(artifact.name, _TIMESTAMP)
        entry.create_system, entry.external_attr = _UNIX, _PLAIN_FILE << 16
        self._zip.writestr(entry, artifact.data)

    def finish(self) -> Artifact:
        """Return the archive."""
        self._zip.close()
        return Artifact(self._name, "application/zip", self._buffer.getvalue())


def unpacked(archive: bytes, folder: str) -> Iterator[bytes]:
    """Yield the files of an archive that are in a folder, in their order.  Raises ValueError for no such archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            for entry in packed.infolist():
                if entry.filename.startswith(folder):
                    yield packed.read(entry)
    except zipfile.BadZipFile as error:
        raise ValueError("it is no ZIP archive") from error
