"""What holds for every request: keys, problem documents, safe headers, and minimal imports."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from pydantic import SecretStr

from maskfleet.api.app import create_app
from maskfleet.api.auth import ApiKeys
from maskfleet.jobs.ledger.api_keys import KeyStore
from maskfleet.jobs.settings import ApiSettings
from tests.api.caller import Caller, check_problem
from tests.api.conftest import KEYS

PARTS = {
    "<job_id>": "job_" + "0" * 32,
    "<image_id>": "img_" + "0" * 32,
    "<batch_id>": "batch_" + "0" * 32,
    "<msg:delivery_id>": "msg_1",
    "<path:name>": "coco.json",
    "<name>": "coco.json",
}
OPEN_ROUTES = ["/", "/playground/main.js", "/live", "/ready", "/openapi.json", "/docs", "/docs/start.js"]


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_the_open_routes_need_no_key(new_app: Flask, path: str) -> None:
    with new_app.test_client().get(path) as response:
        assert response.status_code == 200


def test_all_others_do(app: Flask, client: FlaskClient) -> None:
    closed = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/v1/")]

    assert len(closed) >= 8
    for rule in closed:
        path = rule.rule
        for part, value in PARTS.items():
            path = path.replace(part, value)
        assert "<" not in path
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            response = client.open(path, method=method)
            check_problem(response, 401, "no_api_key")
            assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "key-of-the-apiary"])
def test_a_request_without_a_bearer_key_is_refused(client: FlaskClient, header: str) -> None:
    check_problem(client.get("/v1/jobs", headers={"Authorization": header}), 401, "no_api_key")


@pytest.mark.parametrize("key", ["wrong", "key-of-the-apiar", "apiary:key-of-the-apiary", "é", "k" * 100_000])
def test_an_unknown_key_is_refused(client: FlaskClient, key: str) -> None:
    check_problem(client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"}), 401, "unknown_api_key")


def test_a_key_may_be_given_by_its_hash_alone(redis_client: redis.Redis) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()

    keys = ApiKeys([SecretStr("bakery:other"), SecretStr(f"apiary:sha256:{digest}")], KeyStore(redis_client))

    assert keys.caller_of("Bearer secret").tenant == "apiary"
    assert keys.caller_of("bearer  other ").tenant == "bakery"


def test_the_keys_themselves_are_not_kept(redis_client: redis.Redis) -> None:
    keys = ApiKeys([SecretStr("apiary:a-secret-key")], KeyStore(redis_client))

    assert "a-secret-key" not in repr(vars(keys))


@pytest.mark.parametrize("pair", ["no-tenant", ":sesame", "apiary:", "a b:sesame", "../x:sesame", "apiary:sha256:beef"])
def test_a_key_that_cannot_be_read_stops_the_start_without_being_told(redis_client: redis.Redis, pair: str) -> None:
    with pytest.raises(ValueError, match="API key 1") as refusal:
        ApiKeys([SecretStr(pair)], KeyStore(redis_client))

    assert pair not in str(refusal.value)


def test_an_unknown_address_is_a_problem_document(client: FlaskClient, apiary: Caller) -> None:
    check_problem(client.get("/nothing"), 404, "route_not_found")
    check_problem(client.get("/%00%ff/../.."), 404, "route_not_found")
    check_problem(client.get("/docs/../../auth.py"), 404, "route_not_found")
    check_problem(client.get("/docs/%2e%2e/__init__.py"), 404, "route_not_found")
    check_problem(apiary.get("/v1/nothing"), 404, "route_not_found")


def test_an_unknown_method_is_a_problem_document_that_names_the_known_ones(apiary: Caller) -> None:
    response = apiary.app.test_client().delete("/v1/jobs", headers={"Authorization": f"Bearer {KEYS['apiary']}"})

    check_problem(response, 405, "method_not_allowed")
    assert {"GET", "POST"} <= {method.strip() for method in response.headers["Allow"].split(",")}


def test_a_fault_of_our_own_is_a_problem_document_that_tells_nothing() -> None:
    app = create_app(ApiSettings())

    @app.get("/live/broken")
    def broken() -> str:
        raise RuntimeError("a secret of the inside")

    response = app.test_client().get("/live/broken")

    assert response.status_code == 500
    assert response.content_type == "application/problem+json"
    assert response.json["code"] == "internal_error"
    assert "secret" not in response.text


@pytest.mark.parametrize("path", [*OPEN_ROUTES, "/v1/jobs", "/nothing"])
def test_every_answer_has_the_headers_that_keep_browsers_safe(client: FlaskClient, path: str) -> None:
    with client.get(path) as response:
        headers = response.headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert re.fullmatch(r"[0-9a-f]{32}", headers["X-Request-Id"])


def test_a_request_keeps_the_id_that_it_came_with(client: FlaskClient) -> None:
    assert client.get("/live", headers={"X-Request-Id": "trace-7"}).headers["X-Request-Id"] == "trace-7"
    assert client.get("/live", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"


IMPORTS_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        theirs = {"torch", "transformers", "numpy", "PIL"}
        ours = {"maskfleet.worker", "maskfleet.cli", "maskfleet.client", "maskfleet.stack"}
        if name.partition(".")[0] in theirs or name in ours:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
from maskfleet.api.app import create_app
client = create_app().test_client()
assert client.get("/live").status_code == 200
assert client.get("/openapi.json").status_code == 200
"""


def test_the_door_runs_where_neither_torch_nor_the_work_is_installed() -> None:
    subprocess.run([sys.executable, "-c", IMPORTS_BLOCKED], check=True, timeout=60)
