"""Browser security: the headers of every response, the page's own policy, and no calls from other origins."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from pydantic import ValidationError
from werkzeug.test import TestResponse

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller, job, run_to_success
from tests.api.conftest import KEYS, SettingsMaker

PAGE = "https://masks.example.com"


@pytest.fixture
def all_responses(app: Flask, apiary: Caller, client: FlaskClient, ledger: Ledger, store: Store) -> list[TestResponse]:
    """Return one response of every route and of every kind of error."""
    job_id = apiary.a_job()
    run_to_success(job_id, ledger, store)
    paths = (
        re.sub(r"<(?:\w+:)?(\w+)>", lambda found: {"job_id": job_id}.get(found[1], "coco.json"), rule.rule)
        for rule in app.url_map.iter_rules()
    )
    return [
        *(apiary.get(path) for path in paths),
        apiary.send(job()),
        apiary.send(job(mode="polygon")),
        client.get("/v1/jobs"),
        client.get("/nowhere"),
        client.put("/live"),
        client.options("/v1/jobs"),
    ]


def test_every_answer_tells_a_browser_to_run_load_frame_and_guess_nothing(all_responses: list[TestResponse]) -> None:
    assert {response.status_code // 100 for response in all_responses} >= {2, 3, 4}
    for response in all_responses:
        headers = response.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy


def test_nothing_that_belongs_to_a_tenant_is_kept_by_a_cache(all_responses: list[TestResponse]) -> None:
    private = [response for response in all_responses if response.request.path.startswith("/v1/")]

    assert len(private) >= 8
    assert {response.headers["Cache-Control"] for response in private} == {"no-store"}


def test_https_is_kept_to_once_it_was_used(make_settings: SettingsMaker, client: FlaskClient) -> None:
    public = create_app(make_settings(public_url=PAGE)).test_client()
    behind = create_app(make_settings(trusted_proxies=1)).test_client()
    told = {"X-Forwarded-Proto": "https"}

    assert "Strict-Transport-Security" not in client.get("/live").headers
    assert "Strict-Transport-Security" not in client.get("/live", headers=told).headers
    for response in (
        public.get("/live"),
        behind.get("/live", headers=told),
        client.get("/live", base_url="https://localhost"),
    ):
        assert response.headers["Strict-Transport-Security"] == "max-age=63072000"


def test_the_page_holds_nothing_that_its_policy_forbids(client: FlaskClient) -> None:
    response = client.get("/docs")
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))

    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert re.findall(r"<script(?![^>]*\ssrc=)", response.text) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", response.text) == []
    for source in re.findall(r'<(?:script|link)[^>]*\s(?:src|href)="(?!data:)([^"]+)"', response.text):
        with client.get(f"/{source}") as asset:
            assert asset.status_code == 200
            # With nosniff a browser accepts scripts and styles of these types only.
            assert asset.mimetype in ("text/javascript", "text/css")


# Pages of other origins.


def _preflight(client: FlaskClient, origin: str) -> TestResponse:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return client.options("/v1/jobs", headers={"Origin": origin, **asked})


def _cors(response: TestResponse) -> Iterator[str]:
    return (name for name in response.headers.keys() if name.lower().startswith("access-control-"))  # noqa: SIM118


def test_no_other_origin_may_call_the_api(client: FlaskClient, apiary: Caller) -> None:
    responses = [
        _preflight(client, PAGE),
        apiary.get("/v1/jobs", Origin=PAGE),
        client.get("/live", headers={"Origin": PAGE}),
    ]

    assert [name for response in responses for name in _cors(response)] == []


def test_an_origin_that_is_named_may(make_settings: SettingsMaker, apiary: Caller) -> None:
    app = create_app(make_settings(cors_origins=f"{PAGE},http://localhost:3000"))
    client = app.test_client()

    before = _preflight(client, PAGE)
    response = Caller(app, KEYS["apiary"]).get("/v1/jobs", Origin=PAGE)
    refused = client.get("/v1/jobs", headers={"Origin": PAGE})

    assert before.status_code == 204
    assert "POST" in before.headers["Access-Control-Allow-Methods"]
    assert {"authorization", "content-type", "idempotency-key"} <= {
        name.strip().lower() for name in before.headers["Access-Control-Allow-Headers"].split(",")
    }
    for one in (before, response, refused):
        assert one.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Origin" in one.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in one.headers
    assert "RateLimit-Remaining" in response.headers["Access-Control-Expose-Headers"]
    assert refused.status_code == 401


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://masks.example.com.evil.example", PAGE + ":8443"]
)
def test_another_one_may_not(make_settings: SettingsMaker, origin: str) -> None:
    app = create_app(make_settings(cors_origins=PAGE))

    responses = [_preflight(app.test_client(), origin), Caller(app, KEYS["apiary"]).get("/v1/jobs", Origin=origin)]

    for response in responses:
        assert list(_cors(response)) == []
        assert "Origin" in response.headers["Vary"]
    assert responses[0].status_code == 401


@pytest.mark.parametrize("origin", ["*", "masks.example.com", PAGE + "/", PAGE + "/page", "https://Masks.example.com"])
def test_an_origin_that_no_browser_would_send_stops_the_start(make_settings: SettingsMaker, origin: str) -> None:
    with pytest.raises(ValidationError):
        make_settings(cors_origins=origin)
