"""What the commands take for photographs: files, folders, globs, standard input and addresses, in one list."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import click
from click.shell_completion import CompletionItem

from maskfleet.cli.terminal import did_you_mean
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.image_types import image_format

#: Files that are taken from a folder; a file that is named itself may have any name.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
#: What a run over many photographs leaves in its output folder, which is no folder of photographs then.
PROGRESS_FILE = "progress.jsonl"
_ADDRESSES = ("s3://", "http://", "https://")
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class NamedPhoto:
    """One photograph.

    name: what messages call it, and what a later run knows it by.  folder: where its results go, below the output
    folder.  Of path and data one is there, or none for an address, which is the name.
    """

    name: str
    folder: PurePosixPath
    path: Path | None = None
    data: bytes | None = None

    @property
    def source(self) -> Path | bytes | str:
        """What the client takes for a photo."""
        return self.path or self.data or self.name

    @property
    def version(self) -> str:
        """A word that changes with the photograph; the same for an address, whose content is not looked at."""
        if self.path is not None:
            found = self.path.stat()
            return f"{found.st_size}-{found.st_mtime_ns}"
        return hashlib.sha256(self.data).hexdigest() if self.data is not None else ""


@dataclass(frozen=True, slots=True)
class Photos:
    """The photographs of a command line.  are_many: whether it names more than one, or something that could."""

    photos: tuple[NamedPhoto, ...]
    are_many: bool


class PhotoWord(click.ParamType[str]):
    """A word that ``find_photos`` reads; a shell completes it as a file."""

    name = "photo"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        return [CompletionItem(incomplete, type="file")]


#: The words' description, for the commands' help.
WORDS = (
    "a file, a folder with all below it, a glob in quotes, an address (s3://bucket/key, https://…), or - for standard "
    "input: an image, or a list of such words, one a line"
)
photos_argument = click.argument("words", metavar="PHOTO…", nargs=-1, type=PhotoWord())


def names_many_objects(word: str) -> bool:
    """Return whether a word is a folder in S3, or a pattern of names there."""
    return word.startswith("s3://") and (word.endswith("/") or bool(_GLOB & set(word.rpartition("/")[2])))


def photos_below(prefix: str, addresses: Sequence[str]) -> tuple[NamedPhoto, ...]:
    """Return what a server found below a prefix, each with the folder of its path there."""
    photos = [NamedPhoto(address, _clean(address.removeprefix(prefix).split("/"))) for address in addresses]
    return tuple(_with_distinct_folders(photos))


def find_photos(words: Sequence[str], *, leave_out: Path | None = None) -> Photos:
    """Return the photographs that the words name, each once, with distinct folders.

    leave_out: a folder whose files are not taken for photographs, for results are written there.
    Raises InvalidRequest (``no_photos``, ``file_not_found``, ``invalid_photo``, ``invalid_output``).
    """
    found: dict[str, NamedPhoto] = {}
    are_many = len(words) > 1
    for word in words:
        of_word, could_be_many = _of_word(word, leave_out)
        are_many |= could_be_many
        for photo in of_word:
            found.setdefault(photo.name, photo)
    if not found:
        raise InvalidRequest("no_photos", f"Name a photo: {WORDS}.")
    photos = tuple(_with_distinct_folders(list(found.values())))
    if are_many and leave_out and any((leave_out / photo.folder).is_file() for photo in photos):
        raise InvalidRequest("invalid_output", f"{leave_out} holds the photos themselves. Use another --out.")
    return Photos(photos, are_many)


def _of_word(word: str, leave_out: Path | None) -> tuple[list[NamedPhoto], bool]:
    """Return the photographs of one word, and whether it could name many."""
    if word == "-":
        return _of_standard_input(leave_out)
    if names_many_objects(word):
        raise InvalidRequest(
            "invalid_photo", f"{word} names many objects, which only the server can find: maskfleet batch {word}"
        )
    if word.startswith(_ADDRESSES):
        return [NamedPhoto(word, _last_part(word))], False
    if "://" in word:
        raise InvalidRequest("invalid_photo", f"{word!r} is no address that is read: use s3://, https:// or http://.")
    path = Path(word)
    if path.is_dir():
        photos = [_of_file(each, path) for each in _files_below(path, leave_out)]
        if not photos:
            raise InvalidRequest(
                "no_photos", f"There are no photos in {word}: no files *{', *'.join(sorted(SUFFIXES))}."
            )
        return photos, True
    if not path.exists() and _GLOB & set(word):
        return _of_glob(word, leave_out), True
    if not path.exists():
        near = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InvalidRequest(
            "file_not_found", f"There is no file or folder {word!r}. {did_you_mean(path.name, near)}".rstrip()
        )
    return [_of_file(path, path.parent)], False


def _of_standard_input(leave_out: Path | None) -> tuple[list[NamedPhoto], bool]:
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise InvalidRequest("no_photos", "Standard input is empty. Send an image, or names of photos, one a line.")
    try:
        lines = [] if image_format(data) or b"\0" in data else data.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines:
        return [NamedPhoto("standard input", PurePosixPath("image"), data=data)], False
    words = [line.strip() for line in lines if line.strip()]
    if "-" in words:
        raise InvalidRequest("invalid_photo", "A list on standard input cannot name standard input (-).")
    return [photo for word in words for photo in _of_word(word, leave_out)[0]], True


def _of_glob(word: str, leave_out: Path | None) -> list[NamedPhoto]:
    plain = list(Path(word).parts[:-1])
    while any(_GLOB & set(part) for part in plain):
        plain.pop()
    base = Path(*plain)
    leave_out = None if _is_below(base, leave_out) else leave_out
    matched = [Path(name) for name in sorted(glob.glob(word, recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute one
    files = [path for path in matched if path.is_file() and not _is_below(path, leave_out)]
    # A glob that names no suffix matches other files, too; one of unusual suffixes is meant.
    files = [path for path in files if path.suffix.lower() in SUFFIXES] or files
    if not files:
        raise InvalidRequest("no_photos", f"No file matches {word!r}.")
    return [_of_file(path, base) for path in files]


def _files_below(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """Yield the photographs in a folder and those below it, in order; not hidden ones, and no earlier results."""
    if _is_below(folder, leave_out):
        leave_out = None  # results are written around the photographs, not among them
    for place, folders, files in os.walk(folder):
        if (PROGRESS_FILE in files and Path(place) != folder) or _is_below(Path(place), leave_out):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _of_file(path: Path, base: Path) -> NamedPhoto:
    return NamedPhoto(str(path), _clean(path.relative_to(base).parts), path=path)


def _last_part(address: str) -> PurePosixPath:
    return _clean(unquote(urlsplit(address).path).rsplit("/", 1)[-1:])


def _with_distinct_folders(photos: list[NamedPhoto]) -> Iterator[NamedPhoto]:
    """Yield the photographs; of those that would share a folder, each has its whole path or address in its own."""
    counts: dict[PurePosixPath, int] = {}
    for photo in photos:
        counts[photo.folder] = counts.get(photo.folder, 0) + 1
    taken = {folder for folder, count in counts.items() if count == 1}
    for photo in photos:
        if counts[photo.folder] == 1:
            yield photo
            continue
        parts = urlsplit(photo.name)
        whole = Path(photo.name).parts if photo.path else (parts.netloc, *unquote(parts.path).split("/"))
        folder = _clean(whole)
        while folder in taken:
            folder = folder.with_name(f"{folder.name}_")
        taken.add(folder)
        yield replace(photo, folder=folder)


def _clean(parts: Sequence[str]) -> PurePosixPath:
    """Return a relative path that stays in its folder and hides or replaces nothing there."""
    kept = [
        "".join(char if char.isprintable() and char not in "\\/" else "_" for char in part)
        for part in parts
        if part not in ("", ".", "..", "/")
    ]
    path = PurePosixPath(*kept) if kept else PurePosixPath("image")
    return path.with_name(f"{path.name}_") if str(path) in (PROGRESS_FILE, "coco.json") else path
