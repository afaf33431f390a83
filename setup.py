"""Everything about the package is in pyproject.toml; here is only what keeps an incomplete one from being built."""

import sys
from pathlib import Path

from setuptools import setup

# These are symlinks in the repository.  Some archives, GitHub's .zip as pip unpacks it among them, hold a line of text
# in the place of each, and setuptools would build a package without their contents.
_FOLDERS = ("api", "jobs", "worker", "data/sam-demo")

_lost = [name for name in _FOLDERS if not (Path(__file__).parent / "maskfleet" / name).is_dir()]
if _lost:
    sys.exit(
        f"maskfleet/{_lost[0]} is not a folder: this copy of the source has lost its symlinks. "
        "Take a git clone, GitHub's .tar.gz or the source distribution, not the .zip."
    )

setup()
