"""Import torch and what stands on it without the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch the garbage collector off for the block, and never look at what was there when the block ends.

    Modules make a million objects, and all of them stay.  The collector walks over them again and again while they are
    made, for a fifth of the time that the imports take, and later during jobs.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
