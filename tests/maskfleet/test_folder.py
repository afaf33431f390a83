"""The local stack's data folder."""

from __future__ import annotations

from pathlib import Path

from maskfleet.stack.folder import StackFolder


def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data" / "s3", tmp_path / "of-the-user"
    inside.mkdir(parents=True, mode=0o755)
    (inside / "1.dat").write_bytes(b"an image")
    outside.write_bytes(b"not the stack's")
    for path in (tmp_path / "data", inside / "1.dat", outside):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (inside / "link").symlink_to(outside)

    StackFolder(tmp_path / "data").close()

    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data", inside, inside / "1.dat", outside)}
    assert modes == {"data": 0o700, "s3": 0o700, "1.dat": 0o600, "of-the-user": 0o644}
