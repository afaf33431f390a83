"""A node that still loads its model is announced as such, so that nobody starts another one in its place."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.outages import OutageLog
from maskfleet.jobs.ledger.workers import WORKER_TTL_S, WorkerRegistry, WorkerSeen
from maskfleet.jobs.settings import WorkerSettings


@contextmanager
def announced_as_loading(worker_registry: WorkerRegistry, settings: WorkerSettings) -> Iterator[None]:
    """Announce the node until the block ends, from a thread: loading a model may take minutes."""
    node = WorkerSeen(
        settings.node, settings.serves, settings.device, os.getpid(), 0, loads=True, version=program_version()
    )
    over, outage = threading.Event(), OutageLog("announce")

    def announce_until_over() -> None:
        while not over.is_set():
            try:
                worker_registry.announce(node)
                outage.over()
            except QueueUnavailable as error:
                outage.note(error)
            except Exception as error:  # noqa: BLE001  the model loads all the same
                outage.broke(error)
            over.wait(WORKER_TTL_S / 6)

    thread = threading.Thread(target=announce_until_over, name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # what it announces later would hide that the node is ready


@cache
def program_version() -> str:
    """Return the version of maskfleet that runs here."""
    return version("maskfleet")
