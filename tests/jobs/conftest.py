"""The ledger's own Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import running_redis


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that no other tests use: an app of theirs may still follow jobs, and commands are counted here."""
    with running_redis(tmp_path_factory.mktemp("redis-of-the-ledger")) as url:
        yield url
