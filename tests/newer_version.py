"""A version of maskfleet after this one, made from it: each model of the wire and of the records has one more field."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: The field that the newer version adds to every model in ``jobs/schema``, and its default.
NEW_FIELD, NEW_VALUE = "of_tomorrow", "a default of tomorrow"
_CLASS = re.compile(r'^class \w+\((?!StrEnum|OpenEnum)[\w, ]+\):\n(?:    """(?:[^"]|"(?!""))*"""\n\n?)?', re.MULTILINE)


def make_newer_version(folder: Path) -> Path:
    """Copy the package and the tests' programs into a folder, and add the field; return the folder.

    A program started with it as working directory and PYTHONPATH is of the newer version.
    """
    shutil.copytree(ROOT / "maskfleet", folder / "maskfleet", ignore=shutil.ignore_patterns("__pycache__", "data"))
    (folder / "tests").symlink_to(ROOT / "tests")
    changed = 0
    for module in (folder / "maskfleet" / "jobs" / "schema").glob("*.py"):
        if module.name == "wire.py":
            continue
        text, count = _CLASS.subn(rf'\g<0>    {NEW_FIELD}: str = "{NEW_VALUE}"\n', module.read_text())
        module.write_text(text)
        changed += count
    assert changed > 30, f"only {changed} models were found to add a field to"
    return folder
