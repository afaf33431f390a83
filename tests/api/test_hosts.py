"""The Host header: only names that the operator expects are answered, and links carry no other."""

from __future__ import annotations

import pytest
import redis
from flask import Flask
from pydantic import ValidationError
from werkzeug.test import TestResponse

from maskfleet.api.app import create_app
from maskfleet.jobs.settings import ApiSettings
from tests.api.caller import check_problem, job
from tests.api.conftest import KEYS, SettingsMaker

PUBLIC = "https://masks.example.com/api"
ELSEWHERE = ["evil.example", "10.0.0.1", "192.0.2.1:80", "[2001:db8::1]:80", "localhost.evil.example", "8000"]
MALFORMED = [
    "evil.example/..",
    "a b",
    "a,b",
    "[::1",
    "::1",
    "[fe80::1%25eth0]",
    "host:",
    "host:0x50",
    "host:70000",
    "",
    "a..b",
]


def ask(app: Flask, host: str, path: str = "/v1/jobs") -> TestResponse:
    headers = {"Authorization": f"Bearer {KEYS['apiary']}"}
    return app.test_client().get(path, headers=headers, environ_overrides={"HTTP_HOST": host})


def status(app: Flask, host: str, path: str = "/v1/jobs") -> int:
    return ask(app, host, path).status_code


@pytest.fixture(autouse=True)
def _empty(redis_client: redis.Redis) -> None:
    """An empty ledger."""


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.9:80", "[::1]:8000", "localhost."]
)
def test_loopback_is_answered_by_default(app: Flask, host: str) -> None:
    assert status(app, host) == 200


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("path", ["/v1/jobs", "/metrics", "/openapi.json", "/docs", "/nothing"])
def test_another_host_is_refused_on_every_route_that_is_no_health_check(app: Flask, host: str, path: str) -> None:
    response = ask(app, host, path)

    assert (response.status_code, response.json["code"]) == (400, "host_not_allowed")
    assert "MASKFLEET_TRUSTED_HOSTS" in response.json["detail"]


@pytest.mark.parametrize("host", MALFORMED)
def test_a_malformed_host_is_refused_even_where_any_is_trusted(
    app: Flask, make_settings: SettingsMaker, host: str
) -> None:
    for door in (app, create_app(make_settings(trusted_hosts="*"))):
        check_problem(ask(door, host), 400, "invalid_host")


@pytest.mark.parametrize("host", ["10.244.1.7:8000", "evil.example", "a b", ""])
@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_health_checks_are_answered_under_any_host(new_app: Flask, host: str, path: str) -> None:
    assert status(new_app, host, path) == 200


def test_with_a_public_url_its_host_and_loopback_are_answered(make_settings: SettingsMaker) -> None:
    door = create_app(make_settings(public_url=PUBLIC, bind="192.0.2.7:8000"))

    answered = [status(door, host) for host in ("masks.example.com", "Masks.Example.com:443", "127.0.0.1:8000")]

    assert answered == [200, 200, 200]
    assert status(door, "example.com") == status(door, "192.0.2.7") == 400


def test_without_one_the_bind_address_is_answered(make_settings: SettingsMaker) -> None:
    assert status(create_app(make_settings(bind="192.0.2.7:8000")), "192.0.2.7:8000") == 200
    assert status(create_app(make_settings(bind="[2001:db8::7]:8000")), "[2001:db8::7]:8000") == 200
    assert status(create_app(make_settings(bind="unix:/run/api.sock")), "run") == 400


def test_hosts_that_are_set_replace_the_default(make_settings: SettingsMaker) -> None:
    door = create_app(make_settings(public_url=PUBLIC, trusted_hosts="api, 10.244.0.0/16,2001:db8::/32"))

    assert [status(door, host) for host in ("api:8000", "10.244.3.4:8000", "[2001:db8::9]")] == [200, 200, 200]
    assert [status(door, host) for host in ("masks.example.com", "10.245.0.1", "localhost")] == [400, 400, 400]


@pytest.mark.parametrize("hosts", ["https://a.example", "a.example:80", "a/b", "[::1]", "a b"])
def test_what_is_no_host_stops_the_start(hosts: str) -> None:
    with pytest.raises(ValidationError, match="trusted_hosts"):
        ApiSettings(trusted_hosts=hosts)


def test_links_carry_the_public_url_or_a_host_that_is_trusted(make_settings: SettingsMaker) -> None:
    headers = {"Authorization": f"Bearer {KEYS['apiary']}"}

    def link(door: Flask, host: str) -> str:
        shown = door.test_client().post("/v1/jobs", json=job(), headers=headers, environ_overrides={"HTTP_HOST": host})
        return str(shown.json["urls"]["self"]) if shown.status_code == 202 else shown.json["code"]

    assert link(create_app(make_settings(public_url=PUBLIC)), "127.0.0.1").startswith(f"{PUBLIC}/v1/jobs/")
    assert link(create_app(make_settings(trusted_hosts="*")), "any.example:81").startswith("http://any.example:81/v1/")
    assert link(create_app(make_settings()), "evil.example") == "host_not_allowed"
    forwarded = create_app(make_settings(trusted_proxies=1)).test_client()
    shown = forwarded.post("/v1/jobs", json=job(), headers={**headers, "X-Forwarded-Host": "evil.example"})
    assert shown.json["urls"]["self"].startswith("http://localhost/v1/")


def test_behind_a_sub_path_the_document_names_the_public_url(make_settings: SettingsMaker) -> None:
    servers = [
        create_app(make_settings(public_url=url)).test_client().get("/openapi.json").json["servers"]
        for url in ("", f"{PUBLIC}/")
    ]

    assert servers == [[{"url": "/"}], [{"url": PUBLIC}]]
