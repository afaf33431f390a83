"""One stack of containers for all tests of this folder, which run within ``python -m tests.containers``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskfleet import Client
from tests.compose_file import read_compose
from tests.containers.engine import Engine
from tests.containers.images import REPOSITORY
from tests.containers.services import Services
from tests.containers.settings import ENGINE_VARIABLE, ENV, KEY

API_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def engine() -> Engine:
    told = os.environ.get(ENGINE_VARIABLE)
    if told is None:
        pytest.fail("Run these by `make test-containers`, which builds the images.", pytrace=False)
    driver, _, folder = told.partition(":")
    return Engine(Path(folder), driver)


@pytest.fixture(scope="session")
def services(engine: Engine) -> Iterator[Services]:
    """What docker-compose.yml starts, with one worker."""
    services = Services(engine, read_compose(REPOSITORY / "docker-compose.yml", ENV), REPOSITORY)
    services.down()
    try:
        for name, seconds in services.up().items():
            print(f"{name}: healthy after {seconds} s" if seconds else f"{name}: started")
        yield services
    finally:
        services.down()


@pytest.fixture(scope="session")
def client(services: Services) -> Iterator[Client]:
    """A caller outside the containers."""
    with Client(API_URL, KEY) as client:
        yield client
