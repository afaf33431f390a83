"""What the API really exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskfleet.api.app import create_app
from maskfleet.jobs.settings import ApiSettings
from tests.deploy.metrics import of_workers, series


@pytest.fixture(scope="session")
def exported(shared_fields: dict[str, str], repository: Path) -> dict[str, set[str]]:
    """Every series of the API's and a worker's metrics, and its labels."""
    client = create_app(ApiSettings(**shared_fields, api_keys="apiary:a-key")).test_client()
    client.get("/live")
    response = client.get("/metrics", headers={"Authorization": "Bearer a-key"})
    assert response.status_code == 200
    workers = of_workers((repository / "docs" / "operations.md").read_text())
    assert workers
    return series(response.text) | workers
