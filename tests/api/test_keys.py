"""API keys: created, listed, revoked, expired; what each allows; and isolation between tenants."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result
from flask import Flask
from pydantic import SecretStr
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from maskfleet.api.app import create_app
from maskfleet.api.auth import REMEMBERED_S, ApiKeys
from maskfleet.api.operation import Operation, operation, operation_of
from maskfleet.cli.main import main
from maskfleet.jobs.errors import Unauthorized
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope, new_key
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.spec import job_id_of
from maskfleet.jobs.storage import Store
from tests.api.caller import (
    UNKNOWN,
    Caller,
    a_closed_port,
    check_problem,
    job,
    open_route,
    routes,
    run_to_success,
)
from tests.api.conftest import KEYS, SettingsMaker
from tests.waiting import wait_until


@pytest.fixture
def command(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``maskfleet keys …`` against the test run's Redis."""
    monkeypatch.setenv("MASKFLEET_REDIS_URL", redis_url)
    return lambda *arguments: CliRunner().invoke(main, ["keys", *arguments])


def test_a_key_that_is_made_opens_what_its_scopes_allow(app: Flask, command: Callable[..., Result]) -> None:
    made = command("create", "--tenant", "apiary", "--scope", "jobs:read")
    reader = Caller(app, made.stdout.strip())

    assert made.exit_code == 0
    assert reader.get("/v1/jobs").status_code == 200
    response = reader.send(job())
    assert "jobs:write" in check_problem(response, 403, "missing_scope").detail
    assert "insufficient_scope" in response.headers["WWW-Authenticate"]


def test_a_key_is_made_for_the_stack_that_runs_here(
    key_store: KeyStore, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".maskfleet").mkdir()
    store = {"s3_endpoint": "http://127.0.0.1:1", "s3_access_key": "a", "s3_secret_key": "b", "bucket": "maskfleet"}
    api = {"api_url": "http://127.0.0.1:1", "api_key": "k", "pids": {"api": os.getpid()}}
    line = {**api, **store, "redis_url": redis_url}
    (tmp_path / ".maskfleet" / "stack.json").write_text(json.dumps(line))

    made = CliRunner().invoke(main, ["keys", "create", "--tenant", "apiary", "--scope", "admin"])

    assert made.exit_code == 0
    assert [key.tenant for key in key_store.listed()] == ["apiary"]


def test_several_keys_of_a_tenant_open_the_same_jobs(app: Flask, key_store: KeyStore) -> None:
    _, writing = key_store.create("apiary", [Scope.WRITE])
    _, reading = key_store.create("apiary", [Scope.READ])

    job_id = Caller(app, writing.get_secret_value()).a_job()

    assert Caller(app, reading.get_secret_value()).get(f"/v1/jobs/{job_id}").status_code == 200
    assert Caller(app, KEYS["apiary"]).get(f"/v1/jobs/{job_id}").status_code == 200
    check_problem(Caller(app, writing.get_secret_value()).get(f"/v1/jobs/{job_id}"), 403, "missing_scope")


def test_what_goes_before_all_else_needs_a_scope_of_its_own(app: Flask, key_store: KeyStore) -> None:
    _, writing = key_store.create("apiary", [Scope.WRITE])
    _, urgent = key_store.create("apiary", [Scope.WRITE, Scope.INTERACTIVE])
    batch = {"mode": "everything", "images": [{"url": "https://example.com/bee.jpg"}], "priority": "interactive"}

    def outcomes(key: SecretStr) -> list[TestResponse]:
        caller = Caller(app, key.get_secret_value())
        return [caller.send(job(priority="interactive")), caller.post("/v1/batches", batch)]

    for refused in outcomes(writing):
        assert "jobs:interactive" in check_problem(refused, 403, "missing_scope").detail
    accepted = outcomes(urgent)
    assert [answer.status_code for answer in accepted] == [202, 202]
    again = Caller(app, writing.get_secret_value()).post(f"/v1/jobs/{accepted[0].json['id']}/retry")
    check_problem(again, 403, "missing_scope")
    assert Caller(app, writing.get_secret_value()).send(job(priority="bulk")).status_code == 202
    assert Caller(app, KEYS["apiary"]).send(job(priority="interactive")).status_code == 202


def test_a_scope_of_a_newer_version_opens_nothing_and_takes_nothing_away(
    app: Flask, key_store: KeyStore, redis_client: redis.Redis
) -> None:
    key, text = key_store.create("apiary", [Scope.READ])
    redis_client.hset(f"mf:key:{key.id}", "scopes", "jobs:read of:tomorrow")

    caller = Caller(app, text.get_secret_value())

    assert caller.get("/v1/jobs").status_code == 200
    check_problem(caller.send(job()), 403, "missing_scope")
    assert [listed.scopes for listed in key_store.listed()] == [{Scope.READ}]


def test_a_revoked_key_opens_nothing_within_seconds(app: Flask, command: Callable[..., Result]) -> None:
    text = command("create", "--tenant", "apiary", "--scope", "admin").stdout.strip()
    caller = Caller(app, text)
    assert caller.send(job()).status_code == 202

    revoked = command("revoke", text.split("_")[1])

    assert revoked.exit_code == 0
    wait_until(lambda: caller.get("/v1/jobs").status_code == 401, REMEMBERED_S + 3)
    check_problem(caller.get("/v1/jobs"), 401, "unknown_api_key")
    assert command("revoke", text.split("_")[1]).exit_code == 1
    assert command("list").stdout == ""


def test_an_expired_key_opens_nothing_and_is_not_listed(redis_client: redis.Redis, key_store: KeyStore) -> None:
    key, text = key_store.create("apiary", [Scope.READ], lifetime_s=3600)
    assert key.expires_at is not None
    assert key_store.find(text.get_secret_value()) == key
    assert redis_client.ttl(f"mf:key:{key.id}") == pytest.approx(3600, abs=5)

    redis_client.pexpire(f"mf:key:{key.id}", 1)

    wait_until(lambda: key_store.find(text.get_secret_value()) is None)
    assert key_store.listed() == []
    assert redis_client.zcard("mf:keys") == 0


def test_the_list_shows_everything_but_the_key(command: Callable[..., Result]) -> None:
    text = command(
        "create", "--tenant", "apiary", "--scope", "jobs:read", "--scope", "jobs:write", "--expires", "90d"
    ).stdout.strip()
    command("create", "--tenant", "bakery", "--scope", "admin")

    listed = command("list", "--tenant", "apiary").stdout

    (line,) = listed.splitlines()
    assert text.split("_")[1] in line
    assert "jobs:read,jobs:write" in line
    assert text.split("_")[2] not in listed
    assert "never" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tenant", "a b", "--scope", "admin"),
        ("--tenant", "../x", "--scope", "admin"),
        ("--tenant", "apiary"),
        ("--tenant", "apiary", "--scope", "root"),
        ("--tenant", "apiary", "--scope", "admin", "--expires", "soon"),
        ("--tenant", "apiary", "--scope", "admin", "--expires", "0d"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(
    command: Callable[..., Result], redis_client: redis.Redis, arguments: tuple[str, ...]
) -> None:
    assert command("create", *arguments).exit_code == 2
    assert redis_client.keys("mf:key*") == []


def test_a_key_is_found_by_scanners_and_holds_192_random_bits() -> None:
    keys = {new_key() for _ in range(100)}

    assert len({key.split("_")[2][:48] for key in keys}) == 100
    assert all(re.fullmatch(r"mf_[0-9a-f]{12}_[0-9a-f]{56}", key) for key in keys)


def test_a_mistyped_key_is_refused_without_asking_redis(make_settings: SettingsMaker) -> None:
    settings = make_settings(redis_url=f"redis://127.0.0.1:{a_closed_port()}/0")
    key = new_key()
    mistyped = key[:-1] + ("0" if key[-1] != "0" else "1")

    check_problem(Caller(create_app(settings), mistyped).get("/v1/jobs"), 401, "unknown_api_key")
    check_problem(Caller(create_app(settings), key).get("/v1/jobs"), 503, "queue_unavailable")


def test_a_key_with_the_id_of_another_one_is_unknown(key_store: KeyStore) -> None:
    key, _ = key_store.create("apiary", [Scope.ADMIN])
    body = f"mf_{key.id}_{'0' * 48}"
    forged = f"{body}{zlib.crc32(body.encode()):08x}"

    assert key_store.find(forged) is None
    with pytest.raises(Unauthorized):
        ApiKeys([], key_store).caller_of(f"Bearer {forged}")


def test_only_the_hash_of_a_key_is_kept_and_nothing_shows_it(
    app: Flask, redis_client: redis.Redis, key_store: KeyStore
) -> None:
    key, text = key_store.create("apiary", [Scope.ADMIN])
    secret = text.get_secret_value().split("_")[2]
    keys = ApiKeys([], key_store)
    keys.caller_of(f"Bearer {text.get_secret_value()}")

    kept = [redis_client.hgetall(f"mf:key:{key.id}"), key, text, vars(keys), key_store.listed()]

    assert secret not in repr(kept)


def test_no_line_of_the_log_shows_a_key(app: Flask, key_store: KeyStore) -> None:
    key, text = key_store.create("apiary", [Scope.READ])
    mistyped, bootstrap = f"{text.get_secret_value()}0", KEYS["bakery"]

    with capture_logs(processors=[merge_contextvars]) as lines:
        for one in (text.get_secret_value(), mistyped, bootstrap):
            Caller(app, one).get("/v1/jobs")
            Caller(app, one).send(job())

    shown = repr(lines)
    assert key.id in shown
    assert text.get_secret_value().split("_")[2] not in shown
    assert bootstrap not in shown


def test_a_route_for_operators_needs_the_scope_admin(make_settings: SettingsMaker, key_store: KeyStore) -> None:
    app = create_app(make_settings())
    _, writing = key_store.create("apiary", [Scope.READ, Scope.WRITE])

    @app.get("/operators")
    @operation(Operation(summary="For operators.", scope=Scope.ADMIN, responses={200: "text/plain"}))
    def operators() -> str:
        return "all of it"

    assert Caller(app, writing.get_secret_value()).get("/operators").status_code == 403
    assert Caller(app, KEYS["apiary"]).get("/operators").status_code == 200
    assert app.test_client().get("/operators").status_code == 401


# Every route.


def _scope(app: Flask, rule: Rule) -> Scope | None:
    return operation_of(app.view_functions[rule.endpoint]).scope


def test_every_route_of_jobs_needs_a_key_and_every_other_one_is_meant_to_be_open(app: Flask) -> None:
    open_routes = {rule.rule for _, rule in routes(app) if _scope(app, rule) is None}

    docs, page = {"/openapi.json", "/docs", "/docs/", "/docs/<path:name>"}, {"/", "/playground/<path:name>"}
    assert open_routes == {"/live", "/ready", *docs, *page}


def test_reading_needs_the_scope_to_read_and_all_else_that_to_write(app: Flask) -> None:
    own = {
        "/v1/webhooks/secret": Scope.WEBHOOK_SECRET,
        "/v1/webhooks/secret/rotate": Scope.WEBHOOK_SECRET,
        "/v1/fleet": Scope.ADMIN,
        "/v1/fleet/model": Scope.FLEET,
    }
    for method, rule in routes(app):
        if (scope := _scope(app, rule)) is not None:
            # A token may be for reading alone, and is never for more than its key.
            usual = Scope.READ if method == "GET" or rule.rule == "/v1/tokens" else Scope.WRITE
            is_usual = rule.rule.startswith("/v1/") and rule.rule not in own
            assert scope is (usual if is_usual else own.get(rule.rule, Scope.ADMIN)), rule.rule


def test_every_route_refuses_no_key_an_unknown_key_and_a_key_without_its_scope(app: Flask, key_store: KeyStore) -> None:
    _, reading = key_store.create("apiary", [Scope.READ])
    _, writing = key_store.create("apiary", [Scope.WRITE])
    seen = 0
    for method, rule in routes(app):
        if (scope := _scope(app, rule)) is None:
            continue
        wrong = (writing if scope is Scope.READ else reading).get_secret_value()

        check_problem(open_route(app, method, rule, None, UNKNOWN), 401, "no_api_key")
        check_problem(open_route(app, method, rule, new_key(), UNKNOWN), 401, "unknown_api_key")
        check_problem(open_route(app, method, rule, wrong, UNKNOWN), 403, "missing_scope")
        seen += 1

    assert seen >= 10


def test_no_route_shows_another_tenants_things_nor_that_they_are_there(
    app: Flask, apiary: Caller, ledger: Ledger, store: Store
) -> None:
    fields = {"metadata": {"order": "a-secret-of-the-apiary"}, "webhook": {"url": "https://example.com/hook"}}
    running, ended = apiary.a_job(**fields), apiary.a_job(**fields)
    image_id = apiary.post("/v1/images", {"image": {"url": "https://example.com/bee.jpg"}}).json["image_id"]
    run_to_success(ended, ledger, store)
    images = [{"url": "https://example.com/bee.jpg"}]
    batch = apiary.post("/v1/batches", {"mode": "everything", "images": images, **fields}).json
    assert apiary.get(f"/v1/batches/{batch['id']}").status_code == 200
    delivery = f"msg_{ended}_1_succeeded"
    assert apiary.get(f"/v1/deliveries/{delivery}").status_code == 200
    walked = 0
    for method, rule in routes(app):
        if _scope(app, rule) is None or not rule.arguments:
            continue
        for job_id in (running, ended):
            ids = {**UNKNOWN, "job_id": job_id, "image_id": image_id, "batch_id": batch["id"], "delivery_id": delivery}
            foreign = open_route(app, method, rule, KEYS["bakery"], ids)
            unknown = open_route(app, method, rule, KEYS["bakery"], UNKNOWN)

            assert foreign.status_code == 404, (method, rule.rule)
            assert foreign.json["code"] == unknown.json["code"]
            assert foreign.json["detail"] == unknown.json["detail"]
        walked += 1

    assert walked >= 10
    assert Caller(app, KEYS["bakery"]).get("/v1/jobs").json["jobs"] == []
    sent = {running, ended, job_id_of(image_id), *batch["job_ids"]}
    assert {view["id"] for view in apiary.get("/v1/jobs").json["jobs"]} == sent
    assert [apiary.get(f"/v1/jobs/{job_id}").json["status"] for job_id in (running, ended)] == ["queued", "succeeded"]
