"""The order of the suite's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FIRST, ON_THE_STACK


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
