"""Imports are not slowed by the garbage collector, which works again afterwards."""

from __future__ import annotations

import gc
import weakref

from maskfleet.worker.node.importing import uncollected


class Loop:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_while_modules_are_imported() -> None:
    passes: list[str] = []
    gc.callbacks.append(lambda phase, _: passes.append(phase))
    try:
        with uncollected():
            kept: list[list[int]] = [[] for _ in range(200_000)]  # as many objects as start a collection over and over
    finally:
        gc.callbacks.pop()

    assert len(kept) == 200_000
    assert passes == []


def test_what_was_imported_is_never_looked_at_and_what_comes_later_is_collected() -> None:
    with uncollected():
        modules: list[list[int]] = [[]]

    assert all(modules[0] is not one for one in gc.get_objects())
    lost = weakref.ref(Loop())
    gc.collect()
    assert lost() is None


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
