"""The playground at `/`: served to browsers without a key, under a policy that lets it run its own scripts only."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
from flask.testing import FlaskClient

from maskfleet.api.app import create_app
from tests.api.conftest import SettingsMaker

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
FOLDER = Path(__file__).parents[2] / "api" / "static" / "playground"


class Elements(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", ["/", "/?from=mail"])
def test_a_browser_gets_the_page_without_a_key(client: FlaskClient, path: str) -> None:
    response = client.get(path, headers={"Accept": BROWSER})

    assert response.status_code == 200
    assert response.mimetype == "text/html"
    assert "<title>maskfleet playground</title>" in response.text


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/json, text/html;q=0.5"])
def test_a_program_gets_links(client: FlaskClient, accept: str | None) -> None:
    response = client.get("/", headers={"Accept": accept} if accept else {})

    assert response.status_code == 200
    assert response.json == {"service": "maskfleet", "api": "/v1", "docs": "/docs", "openapi": "/openapi.json"}
    assert "Accept" in response.headers["Vary"]


def test_the_documentation_is_found_with_a_slash_too(client: FlaskClient) -> None:
    response = client.get("/docs/")

    assert response.status_code == 308
    # Also where a proxy has put the service under a path of its own.
    assert urljoin("https://example.com/masks/docs/", response.headers["Location"]) == "https://example.com/masks/docs"


def test_the_page_runs_its_own_scripts_only_and_talks_to_the_service_and_its_store(
    client: FlaskClient, store_fields: dict[str, str]
) -> None:
    policy = _policy(client)

    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": f"'self' {store_fields['s3_endpoint']}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_policy_names_the_store_as_browsers_reach_it(make_settings: SettingsMaker) -> None:
    settings = make_settings(s3_public_endpoint="https://files.example.com/")

    assert _policy(create_app(settings).test_client())["connect-src"] == "'self' https://files.example.com"


def test_the_page_is_there_without_credentials_for_the_store(
    make_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    settings = make_settings(s3_access_key="", s3_secret_key="")

    assert _policy(create_app(settings).test_client())["connect-src"].strip() == "'self'"


def test_the_page_holds_nothing_that_its_policy_forbids(client: FlaskClient) -> None:
    elements = Elements(client.get("/", headers={"Accept": BROWSER}).text).found
    loaded = [
        attributes.get("src") or attributes.get("href") or ""
        for tag, attributes in elements
        if tag in ("script", "link", "img", "iframe")
    ]

    assert len(loaded) >= 3
    assert [tag for tag, _ in elements if tag in ("style", "base", "object", "embed")] == []
    assert [name for _, attributes in elements for name in attributes if name == "style" or name.startswith("on")] == []
    for name in loaded:
        with client.get(f"/{name}") as asset:
            assert asset.status_code == 200
            assert asset.mimetype in ("text/javascript", "text/css", "image/svg+xml")


def test_every_module_is_served_as_a_script_and_asked_for_again_by_its_tag(client: FlaskClient) -> None:
    modules = sorted(path.name for path in FOLDER.glob("*.js"))

    assert "maskfleet.js" in modules
    for name in modules:
        with client.get(f"/playground/{name}") as response:
            assert response.mimetype == "text/javascript"
            assert "no-cache" in response.headers["Cache-Control"]
            tag = response.headers["ETag"]
        with client.get(f"/playground/{name}", headers={"If-None-Match": tag}) as again:
            assert again.status_code == 304


@pytest.mark.parametrize("name", ["nothing.js", "../swagger-ui/LICENSE", "%2e%2e/swagger-ui/LICENSE", "pictures/"])
def test_nothing_else_is_served(client: FlaskClient, name: str) -> None:
    assert client.get(f"/playground/{name}").status_code == 404


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: str(path.name))
def test_no_script_makes_html_of_text_or_loads_from_elsewhere(path: Path) -> None:
    code = re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", path.read_text(), flags=re.S)

    assert re.findall(r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function)\b", code) == []
    assert re.findall(r"https?:", code.replace("http://www.w3.org/2000/svg", "")) == []


def test_pages_of_other_names_are_not_shown(client: FlaskClient) -> None:
    assert client.get("/", headers={"Accept": BROWSER, "Host": "evil.example.com"}).status_code == 400


def _policy(client: FlaskClient) -> dict[str, str]:
    header = client.get("/", headers={"Accept": BROWSER}).headers["Content-Security-Policy"]
    return dict(part.split(" ", 1) for part in header.split("; "))
