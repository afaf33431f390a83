"""Packages that only some methods need: imported when they are used, and named when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from maskfleet.client.errors import MissingPackage


def needed(module: str, install: str, use: str) -> Any:  # Any: a module, whose own types are named where it is used
    """Return a module that is imported only now.

    install: what pip installs for it.  use: what needs it, for the error.  Raises MissingPackage.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != name:
            raise  # it is there, and lacks something itself
        raise MissingPackage(
            f"{use} needs the package {name}, which is not installed. Run: pip install '{install}'",
            name=name,
        ) from error
