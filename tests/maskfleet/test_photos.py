"""What the commands take for photographs."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from maskfleet.cli.photos import PROGRESS_FILE, find_photos
from maskfleet.jobs.errors import InvalidRequest

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with photographs below it."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.JPG", "photos/a.png", "photos/deep/c.tiff", "photos/.hidden.png", "photos/.git/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    (tmp_path / "photos" / "notes.txt").write_text("none")
    return tmp_path


def named(*words: str, leave_out: Path | None = None) -> dict[str, str]:
    return {photo.name: str(photo.folder) for photo in find_photos(words, leave_out=leave_out).photos}


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_folder_names_the_photos_in_it_and_below_but_no_other_files(folder: Path) -> None:
    assert named("photos") == {
        "photos/a.png": "a.png",
        "photos/b.JPG": "b.JPG",
        "photos/deep/c.tiff": "deep/c.tiff",
    }


def test_results_are_not_taken_for_photos(folder: Path) -> None:
    for place in ("photos/masks/a.png", "photos/earlier/a.png"):
        (folder / place).mkdir(parents=True)
        (folder / place / "overlay.png").write_bytes(PNG)
    (folder / "photos" / "earlier" / PROGRESS_FILE).touch()

    assert set(named("photos", leave_out=Path("photos/masks"))) == {
        "photos/a.png",
        "photos/b.JPG",
        "photos/deep/c.tiff",
    }


def test_results_may_be_written_around_the_photos_but_not_in_their_place(folder: Path) -> None:
    around = named("photos", "photos/deep/*.tiff", leave_out=Path())

    assert set(around) == {"photos/a.png", "photos/b.JPG", "photos/deep/c.tiff"}
    for words in (["photos"], ["photos/*.png"], ["photos/a.png", "photos/b.JPG"]):
        with pytest.raises(InvalidRequest, match="photos holds the photos themselves"):
            find_photos(words, leave_out=Path("photos"))


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("photos/*.png", {"photos/a.png": "a.png"}),
        ("photos/*", {"photos/a.png": "a.png", "photos/b.JPG": "b.JPG"}),
        ("photos/**/*.tif*", {"photos/deep/c.tiff": "deep/c.tiff"}),
        ("photos/*.txt", {"photos/notes.txt": "notes.txt"}),
    ],
)
def test_a_glob_in_quotes_names_what_it_matches(folder: Path, glob: str, found: dict[str, str]) -> None:
    assert named(glob) == found


def test_a_file_may_have_any_name_and_be_named_twice(folder: Path) -> None:
    photos = find_photos(["photos/notes.txt", "photos/notes.txt"])

    assert [photo.name for photo in photos.photos] == ["photos/notes.txt"]


def test_one_file_is_one_and_what_could_name_more_is_many(folder: Path) -> None:
    assert not find_photos(["photos/a.png"]).are_many
    assert not find_photos(["https://example.com/a.png"]).are_many
    assert find_photos(["photos/a*.png"]).are_many
    assert find_photos(["photos/deep"]).are_many
    assert find_photos(["photos/a.png", "photos/b.JPG"]).are_many


def test_addresses_are_taken_as_they_are(folder: Path) -> None:
    assert named("s3://photos/2026/bee.jpg", "https://example.com/x/wasp%20one.png?size=1", "https://example.com/") == {
        "s3://photos/2026/bee.jpg": "bee.jpg",
        "https://example.com/x/wasp%20one.png?size=1": "wasp one.png",
        "https://example.com/": "image",
    }


def test_photos_that_share_a_name_get_folders_of_their_own(folder: Path) -> None:
    (folder / "photos" / "deep" / "a.png").write_bytes(PNG)

    found = named("photos/a.png", "photos/deep/a.png", "https://x.example/a.png", "https://x.example/a.png?2")

    assert list(found.values()) == ["photos/a.png", "photos/deep/a.png", "x.example/a.png", "x.example/a.png_"]


@pytest.mark.parametrize("address", ["https://x.example/..%2f..%2fetc", "https://x.example/a%5Cb", "s3://b/%2e%2e"])
def test_no_address_names_a_folder_outside(folder: Path, address: str) -> None:
    (kept,) = named(address).values()

    assert not {"..", "", "/"} & set(Path(kept).parts)
    assert not Path(kept).is_absolute()
    assert "\\" not in kept


def test_no_photo_takes_the_place_of_the_results_of_all(folder: Path) -> None:
    assert named("https://x.example/coco.json", f"https://x.example/{PROGRESS_FILE}") == {
        "https://x.example/coco.json": "coco.json_",
        f"https://x.example/{PROGRESS_FILE}": f"{PROGRESS_FILE}_",
    }


def test_standard_input_may_be_an_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, PNG + bytes(10))

    (photo,) = find_photos(["-"]).photos

    assert photo.source == PNG + bytes(10)


def test_standard_input_may_be_a_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, b"photos/a.png\n\n  https://example.com/b.png\nphotos/deep\n")

    photos = find_photos(["-"])

    assert [photo.name for photo in photos.photos] == [
        "photos/a.png",
        "https://example.com/b.png",
        "photos/deep/c.tiff",
    ]
    assert photos.are_many


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("photos/a.pgn", "file_not_found: There is no file or folder 'photos/a.pgn'. Did you mean 'a.png'?"),
        ("photo", "file_not_found: There is no file or folder 'photo'. Did you mean 'photos'?"),
        ("nowhere/at.all", "file_not_found: There is no file or folder 'nowhere/at.all'."),
        ("photos/*.webp", "no_photos: No file matches 'photos/*.webp'."),
        ("empty", "no_photos: There are no photos in empty: no files *.bmp, "),
        ("ftp://example.com/a.png", "invalid_photo: 'ftp://example.com/a.png' is no address that is read: use s3://"),
    ],
)
def test_what_names_no_photo_is_refused_with_what_to_do(folder: Path, word: str, said: str) -> None:
    (folder / "empty").mkdir()

    with pytest.raises(InvalidRequest) as raised:
        find_photos([word])

    assert str(raised.value).startswith(said)


@pytest.mark.parametrize("word", ["s3://photos/2026/", "s3://photos/", "s3://photos/2026/*.jpg", "s3://photos/b?e.jpg"])
def test_many_objects_are_for_the_server_to_find(folder: Path, word: str) -> None:
    with pytest.raises(InvalidRequest, match=r"only the server can find: maskfleet batch s3://photos"):
        find_photos([word])


@pytest.mark.parametrize("data", [b"", b" \n"])
def test_empty_standard_input_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    standard_input(monkeypatch, data)

    with pytest.raises(InvalidRequest, match="Standard input is empty"):
        find_photos(["-"])
