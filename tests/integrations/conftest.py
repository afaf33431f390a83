"""What the tests in each tool's environment share: a running service, and a finished job's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from maskfleet import Client

REPOSITORY = Path(__file__).parents[2]
Bools = npt.NDArray[np.bool_]


@pytest.fixture(scope="session")
def integrations() -> Path:
    return REPOSITORY / "integrations"


@pytest.fixture(scope="session")
def coins() -> Path:
    return REPOSITORY / "examples" / "coins.png"


@pytest.fixture(scope="session")
def result() -> Path:
    """The files of a job in mode everything on the coins: coco.json, coco_polygons.json and masks/."""
    return Path(os.environ["INTEGRATIONS_RESULT"])


@pytest.fixture(scope="session")
def masks(result: Path) -> list[Bools]:
    """That job's masks, from its PNG files."""
    found = [np.asarray(Image.open(path)) for path in sorted((result / "masks").iterdir())]
    assert len(found) > 10
    return found


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    with Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"]) as client:
        yield client


@pytest.fixture
def forget_images(client: Client) -> Callable[[], int]:
    """A function that has the service forget the images that it knows since the test began; returns how many."""
    earlier = {job.id for job in client.jobs()}

    def forget() -> int:
        made = [job for job in client.jobs() if job.mode == "embed" and job.id not in earlier]
        for job in made:
            client.delete_image(f"img_{job.id.removeprefix('job_')}")
        return len(made)

    return forget
