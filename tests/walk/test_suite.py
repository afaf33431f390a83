"""The order of the suite's own files, and that no test changes the process for those that come after it."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
import structlog

from maskfleet.jobs.logs import configure_logs
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.node.figures import shown_figures
from maskfleet.worker.node.supervisor import StopSignals
from tests.conftest import FIRST, ON_THE_STACK, process_as_before


def test_every_collected_file_that_uses_the_running_stack_is_named(request: pytest.FixtureRequest) -> None:
    """Any other would start a second stack."""
    using = {
        item.nodeid.partition("::")[0]
        for item in request.session.items
        if "running_stack" in getattr(item, "fixturenames", ())
    }

    assert using <= set(ON_THE_STACK)


@pytest.mark.parametrize("file", FIRST)
def test_what_begins_is_there(repository: Path, file: str) -> None:
    assert (repository / file).is_file()


def test_what_a_program_changes_of_its_process_is_taken_back() -> None:
    def state() -> tuple[object, ...]:
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        umask = os.umask(0o077)
        os.umask(umask)
        logs = structlog.get_config()["processors"], tuple(logging.getLogger().handlers), logging.getLogger().level
        return dict(os.environ), umask, handlers, logs, structlog.contextvars.get_contextvars()

    before = state()

    with process_as_before():
        os.umask(0o027)
        os.environ.pop("PATH")
        shown_figures(WorkerSettings(node="sam-cpu@host"))
        configure_logs("ERROR", program="api")
        structlog.contextvars.bind_contextvars(request_id="req_1")
        StopSignals()
        changed = state()

    assert all(now != then for now, then in zip(changed, before, strict=True))
    assert state() == before
