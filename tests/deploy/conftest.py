"""What the API really exports, and the chart, rendered with each of its sets of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from maskfleet.api.app import create_app
from maskfleet.jobs.settings import ApiSettings
from tests.deploy.chart import NAMESPACE, NO_HELM, RELEASE, SETS, Object, Rendered, read_values
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


@pytest.fixture(scope="session")
def chart(repository: Path) -> Path:
    return repository / "deploy" / "helm" / "maskfleet"


@pytest.fixture(scope="session")
def render(chart: Path) -> Iterator[Callable[[Object | str], Rendered]]:
    """Render the chart with values, or with those of a set in its folder ci; raise what Helm says of wrong ones."""
    helm_python = pytest.importorskip("helm_python", reason=NO_HELM)
    known: dict[str, Rendered] = {}

    with helm_python.Chart.load(chart) as loaded:

        def rendered(values: Object | str) -> Rendered:
            if isinstance(values, str):
                if values not in known:
                    known[values] = rendered(read_values(chart / "ci" / f"{values}-values.yaml"))
                return known[values]
            loaded.validate_schema(values)
            texts = loaded.render(values, name=RELEASE, namespace=NAMESPACE)
            objects = [
                one
                for path, text in texts.items()
                if path.endswith(".yaml")
                for one in yaml.safe_load_all(text)
                if one is not None
            ]
            notes = next(text for path, text in texts.items() if path.endswith("NOTES.txt"))
            return Rendered(tuple(objects), notes)

        yield rendered


@pytest.fixture(scope="session", params=SETS)
def rendered(request: pytest.FixtureRequest, render: Callable[[str], Rendered]) -> Rendered:
    return render(request.param)
