"""The process's memory, as the operating system sees it."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system.  Only glibc holds on to it in fragments; elsewhere this does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
