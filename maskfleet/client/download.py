"""Download the files of a manifest, each checked before it gets its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import requests

from maskfleet.client.errors import DamagedFile, Refused, Unavailable
from maskfleet.client.transport import Transport
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile

#: Bytes that are held at a time, however large the file is.
_CHUNK = 1 << 20


def download(
    transport: Transport,
    manifest: Manifest,
    folder: Path,
    *,
    on_file: Callable[[str, int, int], object] | None = None,
) -> None:
    """Write a result's files into a folder, and then ``manifest.json``, without its short-lived links.

    Raises DamagedFile if the size or sha256 differs; that file does not appear under its name.
    """
    total = len(manifest.files)
    for done, file in enumerate(manifest.files):
        if on_file is not None:
            on_file(file.name, done, total)
        _download_one(transport, file, folder / _safe(file.name))
    if on_file is not None:
        on_file("manifest.json", total, total)
    folder.mkdir(parents=True, exist_ok=True)
    text = manifest.model_dump_json(indent=2, exclude={"files": {"__all__": {"url"}}})
    (folder / "manifest.json").write_text(text + "\n")


def read_file(transport: Transport, file: ManifestFile) -> bytes:
    """Return a file's bytes.  Raises DamagedFile if its size or sha256 differs."""
    if file.url is None:
        raise _no_link(file)
    data = transport.send(requests.Request("GET", file.url)).content
    if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(file)
    return data


def _no_link(file: ManifestFile) -> Refused:
    return Refused("no_link", f"The manifest has no link for {file.name}; request it from the API again.")


def _damaged(file: ManifestFile) -> DamagedFile:
    return DamagedFile("damaged_file", f"{file.name} does not match the manifest. Fetch it again.")


def _download_one(transport: Transport, file: ManifestFile, path: Path) -> None:
    if file.url is None:
        raise _no_link(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    part = path.with_name(f"{path.name}.part")
    try:
        with (
            transport.send(requests.Request("GET", file.url), stream=True) as response,
            part.open("wb") as written,
        ):
            for chunk in response.iter_content(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                written.write(chunk)
        if size != file.size or digest.hexdigest() != file.sha256:
            raise _damaged(file)
        part.replace(path)
    except requests.RequestException as error:
        raise Unavailable(
            "download_broken_off", f"The download of {file.name} was interrupted. Fetch it again."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _safe(name: str) -> Path:
    # The names come from the network: none may point outside the folder.
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DamagedFile("damaged_file", f"The manifest names a file {name!r} outside the result's folder.")
    return Path(*path.parts)
