"""Tokens for web pages: what they open, what they do not, and how they end."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
import requests
from flask import Flask
from pydantic import SecretStr
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from maskfleet.api.app import create_app
from maskfleet.api.auth import REMEMBERED_S, ApiKeys
from maskfleet.api.operation import TakenTokens, operation_of
from maskfleet.api.tokens import Tokens
from maskfleet.jobs.errors import Unauthorized
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.spec import job_id_of
from maskfleet.jobs.storage import Store, upload_id_of
from maskfleet.jobs.webhook_secrets import new_master
from tests.api.caller import (
    UNKNOWN,
    Caller,
    as_base64,
    check_problem,
    job,
    open_route,
    routes,
    run_to_success,
)
from tests.api.conftest import KEYS, SettingsMaker
from tests.api.door import Door, open_door
from tests.api.pictures import a_picture
from tests.conftest import WEBHOOK_MASTER
from tests.waiting import wait_until

#: Two images of a tenant, as bytes and by the ids that they have once they are stored.
BEE, WASP = a_picture((64, 48)), a_picture((32, 32))
BEE_ID, WASP_ID = upload_id_of(BEE), upload_id_of(WASP)
CLICK = {"mode": "point", "prompts": [{"points": [[9, 9]]}]}
PAGE = "https://masks.example.com"


def make_token(caller: Caller, **wanted: object) -> str:
    response = caller.post("/v1/tokens", wanted)
    assert response.status_code == 201, response.text
    return str(response.json["token"])


def click(image_id: str = BEE_ID, **fields: object) -> dict[str, object]:
    return {**CLICK, "image": {"upload_id": image_id}, **fields}


@pytest.fixture
def images(store: Store) -> None:
    """Both images, stored."""
    for data in (BEE, WASP):
        store.put_upload("apiary", data, "image/jpeg")


@pytest.fixture
def page(apiary: Caller, images: None) -> Caller:
    """A web page with a token for one image."""
    return Caller(apiary.app, make_token(apiary, upload_id=BEE_ID, scopes=["jobs:read", "jobs:write"]))


class HandClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# Of a whole tenant.


def test_a_token_opens_what_its_key_opens_for_as_long_as_was_asked(apiary: Caller, bakery: Caller) -> None:
    before = datetime.now(UTC)
    response = apiary.post("/v1/tokens", {"ttl_s": 60})
    made = response.json
    page = Caller(apiary.app, made["token"])

    assert re.fullmatch(r"mft_setting-1\.[\w-]+\.[\w-]{43}", made["token"])
    assert 59 <= (datetime.fromisoformat(made["expires_at"]) - before).total_seconds() <= 62
    assert made["scopes"] == ["jobs:read", "jobs:write"]
    assert response.headers["Cache-Control"] == "no-store"
    job_id = page.a_job()
    assert page.get(f"/v1/jobs/{job_id}").status_code == apiary.get(f"/v1/jobs/{job_id}").status_code == 200
    check_problem(bakery.get(f"/v1/jobs/{job_id}"), 404, "job_not_found")


def test_a_token_has_the_scopes_that_were_asked_for_and_no_more(app: Flask, key_store: KeyStore) -> None:
    _, reading = key_store.create("apiary", [Scope.READ])
    _, writing = key_store.create("apiary", [Scope.WRITE])
    _, both = key_store.create("apiary", [Scope.READ, Scope.WRITE])
    reader, both_ways = Caller(app, reading.get_secret_value()), Caller(app, both.get_secret_value())
    narrow = Caller(app, make_token(both_ways, scopes=["jobs:read"]))

    assert narrow.get("/v1/jobs").status_code == 200
    check_problem(narrow.send(job()), 403, "missing_scope")
    assert reader.post("/v1/tokens", {}).json["scopes"] == ["jobs:read"]
    refused = check_problem(reader.post("/v1/tokens", {"scopes": ["jobs:write"]}), 403, "missing_scope")
    assert "jobs:write" in refused.detail
    check_problem(both_ways.post("/v1/tokens", {"scopes": ["jobs:interactive"]}), 403, "missing_scope")
    check_problem(Caller(app, writing.get_secret_value()).post("/v1/tokens", {}), 403, "missing_scope")


def test_a_token_never_allows_what_is_not_for_pages(apiary: Caller) -> None:
    for scope in ("admin", "webhooks:secret"):
        check_problem(apiary.post("/v1/tokens", {"scopes": [scope]}), 422, "invalid_token_request")
    page = Caller(apiary.app, make_token(apiary, scopes=["jobs:read", "jobs:write", "jobs:interactive"]))

    check_problem(page.get("/metrics"), 403, "missing_scope")
    check_problem(page.get("/v1/webhooks/secret"), 403, "missing_scope")
    check_problem(page.post("/v1/tokens", {}), 403, "token_not_allowed")
    assert page.send(job(priority="interactive")).status_code == 202


@pytest.mark.parametrize(
    "wanted",
    [{"ttl_s": 0}, {"ttl_s": 3601}, {"ttl_s": "60"}, {"scopes": []}, {"upload_id": "upl_1"}, {"tenant": "bakery"}],
)
def test_a_token_that_makes_no_sense_is_not_made(apiary: Caller, wanted: dict[str, object]) -> None:
    check_problem(apiary.post("/v1/tokens", wanted), 422, "invalid_token_request")


def test_requests_with_a_token_count_towards_the_key_that_made_it(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    app = create_app(make_settings(rate_limit="3/minute"))
    key = Caller(app, KEYS["apiary"])
    pages = [Caller(app, make_token(key)) for _ in range(2)]

    assert pages[0].get("/v1/jobs").headers["RateLimit-Remaining"] == "0"
    for caller in (*pages, key):
        check_problem(caller.get("/v1/jobs"), 429, "rate_limited")


# Forged, altered, of another key.


def claims_of(token: str) -> dict[str, object]:
    text = token.split(".")[1]
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def with_claims(token: str, **changed: object) -> str:
    key, _, signature = token.split(".")
    text = json.dumps({**claims_of(token), **changed}).encode()
    return f"{key}.{base64.urlsafe_b64encode(text).decode().rstrip('=')}.{signature}"


def test_a_token_that_was_altered_anywhere_opens_nothing(apiary: Caller, bakery: Caller) -> None:
    token, other = make_token(apiary, upload_id=BEE_ID, ttl_s=600), make_token(bakery, ttl_s=600)
    altered = {
        "its claims": with_claims(token, scopes=["jobs:read", "jobs:write", "admin"]),
        "its image": with_claims(token, image=WASP_ID),
        "no image": with_claims(token, image=""),
        "its time": with_claims(token, expires_ms=2**50),
        "the tenant's key": token.replace("setting-1", "setting-2"),
        "a key that is not there": token.replace("setting-1", "setting-99"),
        "a key of Redis that is not there": token.replace("setting-1", "0" * 12),
        "another token's signature": ".".join([*token.split(".")[:2], other.split(".")[2]]),
        "another token's claims": ".".join([token.split(".")[0], other.split(".")[1], token.split(".")[2]]),
        "no signature": token.rpartition(".")[0],
        "an empty signature": token.rpartition(".")[0] + ".",
        "more": token + "A",
        "less": token[:-1],
        "nothing but the prefix": "mft_",
    }

    for name, text in altered.items():
        response = Caller(apiary.app, text).get("/v1/jobs")
        check_problem(response, 401, "invalid_token")
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"], name


def test_no_single_character_of_a_token_can_be_another_one(redis_client: redis.Redis) -> None:
    keys = ApiKeys([SecretStr("apiary:k")], KeyStore(redis_client), Tokens([WEBHOOK_MASTER]))
    text, _ = keys.make_token(keys.caller_of("Bearer k"), [Scope.READ], 600)
    assert keys.caller_of(f"Bearer {text}").tenant == "apiary"

    for place in range(len("mft_"), len(text)):
        other = "B" if text[place] != "B" else "C"
        with pytest.raises(Unauthorized):
            keys.caller_of(f"Bearer {text[:place]}{other}{text[place + 1 :]}")


def test_a_token_signed_with_another_master_secret_opens_nothing(apiary: Caller, make_settings: SettingsMaker) -> None:
    forger = Caller(create_app(make_settings(webhook_master_secrets=new_master())), KEYS["apiary"])

    check_problem(Caller(apiary.app, make_token(forger)).get("/v1/jobs"), 401, "invalid_token")


def test_while_the_master_secret_is_replaced_the_tokens_of_both_are_good(
    apiary: Caller, make_settings: SettingsMaker
) -> None:
    new = new_master()
    changing = create_app(make_settings(webhook_master_secrets=f"{new},{WEBHOOK_MASTER}"))
    changed = create_app(make_settings(webhook_master_secrets=new))
    old_token, new_token = make_token(apiary), make_token(Caller(changing, KEYS["apiary"]))

    assert Caller(changing, old_token).get("/v1/jobs").status_code == 200
    assert Caller(changed, new_token).get("/v1/jobs").status_code == 200
    check_problem(Caller(changed, old_token).get("/v1/jobs"), 401, "invalid_token")


def test_without_a_master_secret_there_are_no_tokens(make_settings: SettingsMaker, redis_client: redis.Redis) -> None:
    app = create_app(make_settings(webhook_master_secrets=""))

    detail = check_problem(Caller(app, KEYS["apiary"]).post("/v1/tokens", {}), 404, "tokens_not_available").detail
    assert "MASKFLEET_WEBHOOK_MASTER_SECRETS" in detail
    check_problem(Caller(app, "mft_setting-1.e30." + "A" * 43).get("/v1/jobs"), 401, "invalid_token")


def test_a_key_that_takes_anothers_place_in_the_settings_does_not_take_over_its_tokens(
    apiary: Caller, make_settings: SettingsMaker
) -> None:
    token = make_token(apiary)
    replaced = create_app(make_settings(api_keys="apiary:a-new-key-of-the-apiary"))
    moved = create_app(make_settings(api_keys=f"bakery:{KEYS['bakery']},apiary:{KEYS['apiary']}"))

    for app in (replaced, moved):
        check_problem(Caller(app, token).get("/v1/jobs"), 401, "invalid_token")


def test_a_key_that_looks_like_a_token_stops_the_start(redis_client: redis.Redis) -> None:
    with pytest.raises(ValueError, match="API key 2"):
        ApiKeys([SecretStr("apiary:k"), SecretStr("bakery:mft_key")], KeyStore(redis_client))


# Its end.


def test_a_token_is_over_when_its_time_is(apiary: Caller) -> None:
    page = Caller(apiary.app, make_token(apiary, ttl_s=1))

    wait_until(lambda: page.get("/v1/jobs").status_code == 401)

    response = page.get("/v1/jobs")
    check_problem(response, 401, "token_expired")
    assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]


def test_a_token_made_on_a_machine_whose_clock_is_off_is_good_at_once_and_ends_by_the_clock_that_checks_it() -> None:
    key = b"k" * 32
    for ahead_s in (-120, 0, 120):
        clock = HandClock(1_000_000)
        maker, checker = Tokens([WEBHOOK_MASTER], HandClock(clock.now + ahead_s)), Tokens([WEBHOOK_MASTER], clock)
        text, _ = maker.make("setting-1", key, [Scope.READ], 600)

        token = checker.read(text, key)

        assert token is not None
        assert not checker.has_expired(token)
        clock.now += 600 + ahead_s - 1
        assert not checker.has_expired(token)
        clock.now += 1
        assert checker.has_expired(token)


def test_a_token_ends_with_the_key_that_made_it(app: Flask, key_store: KeyStore) -> None:
    key, text = key_store.create("apiary", [Scope.READ])
    _, successor = key_store.create("apiary", [Scope.READ])
    page = Caller(app, make_token(Caller(app, text.get_secret_value()), ttl_s=3600))
    other = Caller(app, make_token(Caller(app, successor.get_secret_value()), ttl_s=3600))
    assert page.get("/v1/jobs").status_code == 200

    key_store.revoke(key.id)

    wait_until(lambda: page.get("/v1/jobs").status_code == 401, REMEMBERED_S + 3)
    check_problem(page.get("/v1/jobs"), 401, "invalid_token")
    assert other.get("/v1/jobs").status_code == 200


def test_a_token_has_no_scope_that_its_key_has_no_more(app: Flask, key_store: KeyStore) -> None:
    key, _ = key_store.create("apiary", [Scope.READ])
    tokens, keys = Tokens([WEBHOOK_MASTER]), ApiKeys([], key_store, Tokens([WEBHOOK_MASTER]))

    wide, _ = tokens.make(key.id, key.sha256, [Scope.READ, Scope.WRITE], 600)

    assert keys.caller_of(f"Bearer {wide}").scopes == {Scope.READ}


@pytest.fixture
def door(
    shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Door]:
    """The API in one process, as in production; a test may pass its own settings as the fixture's parameter."""
    settings = {"processes": "1", "webhook_master_secrets": WEBHOOK_MASTER, "log_level": "DEBUG", "cors_origins": PAGE}
    with open_door(shared_fields, tmp_path, **{**settings, **getattr(request, "param", {})}) as running:
        yield running


def token_of(door: Door, key: str = KEYS["apiary"], **wanted: object) -> str:
    response = door.ask("POST", "/v1/tokens", body=wanted, Authorization=f"Bearer {key}")
    assert response.status_code == 201, response.text
    return str(response.json()["token"])


def job_of(door: Door) -> str:
    return str(door.ask("POST", "/v1/jobs", body=job(image={"base64": as_base64(BEE)})).json()["id"])


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_stream_ends_with_its_token(door: Door, key_store: KeyStore, end: str) -> None:
    key, text = key_store.create("apiary", [Scope.READ])
    job_id = job_of(door)
    ttl_s = 5 if end == "expired" else 600
    token = token_of(door, text.get_secret_value(), upload_id=BEE_ID, ttl_s=ttl_s)
    url = f"{door.url}/v1/jobs/{job_id}/events?access_token={token}"
    with closing(requests.get(url, stream=True, timeout=40)) as stream:
        lines = stream.iter_lines(chunk_size=1)
        wait_until(lambda: next(lines).startswith(b"data: "))

        if end == "revoked":
            key_store.revoke(key.id)

        assert all(line == b"" or line.startswith(b":") for line in lines)  # to its end
    wait_until(lambda: door.held() == 0, 15)
    again = requests.get(url, timeout=40)
    assert again.json()["code"] == ("token_expired" if end == "expired" else "invalid_token")


# Of one image.


def test_a_page_with_a_token_for_one_image_sends_follows_reads_and_cancels_its_jobs(
    page: Caller, apiary: Caller, ledger: Ledger, store: Store
) -> None:
    sent = page.send(click())
    assert sent.status_code == 202, sent.text
    mine, of_the_tenant = sent.json["id"], apiary.a_job(image={"base64": as_base64(BEE)})
    run_to_success(mine, ledger, store)

    assert page.get(f"/v1/jobs/{mine}").json["status"] == "succeeded"
    assert page.get(f"/v1/jobs/{mine}/events").status_code == 200
    assert len(page.get(f"/v1/jobs/{mine}/result").json["files"]) == 2
    assert page.get(f"/v1/jobs/{mine}/files/coco.json").status_code == 307
    assert page.get(f"/v1/jobs/{of_the_tenant}").status_code == 200
    assert page.post(f"/v1/jobs/{of_the_tenant}/cancel").json["status"] == "canceled"


def test_jobs_of_other_images_are_to_it_as_if_they_were_not(
    page: Caller, apiary: Caller, bakery: Caller, ledger: Ledger, store: Store
) -> None:
    others = [apiary.a_job(image=image) for image in ({"upload_id": WASP_ID}, {"url": "https://example.com/bee.jpg"})]
    store.put_upload("bakery", BEE, "image/jpeg")
    others.append(bakery.a_job(image={"upload_id": BEE_ID}))
    run_to_success(others[0], ledger, store)
    for job_id in others:
        for path in ("", "/events", "/result", "/files/coco.json"):
            response = page.get(f"/v1/jobs/{job_id}{path}")
            check_problem(response, 404, "job_not_found")
            assert response.json["detail"] == page.get(f"/v1/jobs/{UNKNOWN['job_id']}").json["detail"]
        check_problem(page.post(f"/v1/jobs/{job_id}/cancel"), 404, "job_not_found")


def test_the_jobs_of_a_batch_belong_to_their_images(page: Caller, apiary: Caller) -> None:
    images = [{"upload_id": WASP_ID}, {"upload_id": BEE_ID}, {"base64": as_base64(BEE)}]
    batch = apiary.post("/v1/batches", {"mode": "everything", "images": images}).json

    statuses = [page.get(f"/v1/jobs/{job_id}").status_code for job_id in batch["job_ids"]]

    assert statuses == [404, 200, 200]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"image": {"upload_id": WASP_ID}}, "image_not_allowed"),
        ({"image": {"url": "https://example.com/bee.jpg"}}, "image_not_allowed"),
        ({"image": {"s3_uri": "s3://photos/bee.jpg"}}, "image_not_allowed"),
        # Even the same one: it would be stored again, and counted.
        ({"image": {"base64": as_base64(BEE)}}, "image_not_allowed"),
        ({"mode": "everything", "prompts": None}, "token_not_allowed"),
        ({"webhook": {"url": "https://example.com/hook"}}, "token_not_allowed"),
        ({"priority": "interactive"}, "missing_scope"),
    ],
)
def test_it_sends_no_other_jobs(page: Caller, apiary: Caller, fields: dict[str, object], code: str) -> None:
    body = {name: value for name, value in click(**fields).items() if value is not None}

    check_problem(page.send(body), 403, code)

    assert apiary.get("/v1/jobs").json["jobs"] == []


def test_it_refines_masks_of_its_own_image_only(page: Caller, apiary: Caller, ledger: Ledger, store: Store) -> None:
    def refine(**source: object) -> TestResponse:
        return page.send(click(prompts=[{"points": [[9, 9]], "mask_input": source}]))

    mine = apiary.a_job(image={"upload_id": BEE_ID}, outputs=["logits"])
    other = apiary.a_job(image={"upload_id": WASP_ID}, outputs=["logits"])
    for job_id in (mine, other):
        run_to_success(job_id, ledger, store)

    assert refine(job_id=mine, mask=0).status_code == 202
    check_problem(refine(job_id=other, mask=0), 422, "mask_input_not_found")
    check_problem(refine(job_id=UNKNOWN["job_id"], mask=0), 422, "mask_input_not_found")
    check_problem(refine(upload_id=WASP_ID), 403, "token_not_allowed")
    check_problem(refine(s3_uri="s3://photos/mask.npy"), 403, "token_not_allowed")


def test_it_sends_no_image_along(page: Caller) -> None:
    parts = [("job", json.dumps(CLICK)), ("image", (BEE, "bee.jpg", "image/jpeg"))]
    check_problem(page.post_parts(parts), 403, "image_not_allowed")

    large = page.post_parts([*parts, ("more", "x" * 300_000)])

    check_problem(large, 413, "body_too_large")


def test_its_idempotency_keys_are_its_own(page: Caller, apiary: Caller) -> None:
    first = page.send(click(), Idempotency_Key="order-42").json["id"]

    assert page.send(click(), Idempotency_Key="order-42").json["id"] == first
    by_the_tenant = apiary.send(job(), Idempotency_Key="order-42")
    assert by_the_tenant.status_code == 202
    assert by_the_tenant.json["id"] != first


def test_every_route_but_those_of_its_image_refuses_it(app: Flask, page: Caller, apiary: Caller) -> None:
    job_id = apiary.a_job(image={"upload_id": BEE_ID})
    apiary.post(f"/v1/jobs/{job_id}/cancel")  # its stream ends
    opened = set()
    for method, rule in routes(app):
        described = operation_of(app.view_functions[rule.endpoint])
        if described.scope is None:
            continue
        response = open_route(app, method, rule, page.key, {**UNKNOWN, "job_id": job_id})
        if described.tokens is TakenTokens.OF_IMAGE:
            opened.add((method, rule.rule))
            assert response.status_code != 403, rule.rule
        else:
            check_problem(response, 403, "token_not_allowed")

    assert opened == {
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs/<job_id>"),
        ("GET", "/v1/jobs/<job_id>/events"),
        ("GET", "/v1/jobs/<job_id>/result"),
        ("GET", "/v1/jobs/<job_id>/files/<path:name>"),
        ("POST", "/v1/jobs/<job_id>/cancel"),
    }


# In a URL.


def test_an_event_stream_takes_its_token_in_the_url(app: Flask, apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job(image={"base64": as_base64(BEE)})
    run_to_success(job_id, ledger, store)
    token = make_token(apiary, upload_id=BEE_ID)

    response = app.test_client().get(f"/v1/jobs/{job_id}/events?access_token={token}")

    assert response.status_code == 200
    assert b'"succeeded"' in response.data
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"


def test_no_other_route_takes_one_there(app: Flask, apiary: Caller) -> None:
    token = make_token(apiary)
    for method, rule in routes(app):
        described = operation_of(app.view_functions[rule.endpoint])
        if described.scope is None or described.token_in_url:
            continue
        for key in (None, KEYS["apiary"]):
            response = open_route(app, method, rule, key, UNKNOWN, query=f"?access_token={token}")
            assert (response.status_code, response.json["code"]) == (400, "token_in_url"), rule.rule
            assert token not in response.text


def test_an_api_key_is_not_taken_in_a_url(app: Flask, apiary: Caller, key_store: KeyStore) -> None:
    _, made = key_store.create("apiary", [Scope.READ])
    path = f"/v1/jobs/{apiary.a_job()}/events"
    client = app.test_client()

    for key in (KEYS["apiary"], made.get_secret_value(), "", "mft_"):
        check_problem(client.get(path, query_string={"access_token": key}), 401, "invalid_token")


def test_a_request_identifies_itself_once(app: Flask, apiary: Caller) -> None:
    path, token = f"/v1/jobs/{apiary.a_job()}/events", make_token(apiary)

    check_problem(apiary.get(f"{path}?access_token={token}"), 400, "token_in_url")
    check_problem(app.test_client().get(f"{path}?access_token={token}&access_token={token}"), 400, "token_in_url")


# What is kept, logged and shown.


def test_nothing_of_a_token_is_kept(apiary: Caller, redis_client: redis.Redis) -> None:
    before = set(redis_client.keys("*"))

    token = make_token(apiary, upload_id=BEE_ID)
    Caller(apiary.app, token).get("/v1/jobs")

    assert set(redis_client.keys("*")) == before


def test_no_line_of_the_log_shows_a_token(app: Flask, apiary: Caller) -> None:
    with capture_logs(processors=[merge_contextvars]) as lines:
        token = make_token(apiary)
        Caller(app, token).get("/v1/jobs")
        Caller(app, f"{token}x").get("/v1/jobs")
        app.test_client().get(f"/v1/jobs/{apiary.a_job()}/events?access_token={token}")
        app.test_client().get(f"/v1/jobs?access_token={token}")

    [made] = [line for line in lines if line["event"] == "token_made"]
    used = [line for line in lines if line.get("token_id") == made["token_id"] and line is not made]
    assert (made["key_id"], len(used) > 0) == ("setting-1", True)
    assert token.split(".")[2] not in repr(lines)
    assert "mft_" not in repr(lines)


def test_not_even_gunicorns_lines_about_requests_that_make_no_sense(door: Door) -> None:
    token = token_of(door)
    job_id = job_of(door)
    for head in (
        f"GET /v1/jobs/{job_id}/events?access_token={token} HTTP/9.9\r\n\r\n",
        f"GET /v1/jobs/{job_id}/events?access_token={token} and more HTTP/1.1\r\n\r\n",
        f"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization {token}\r\n\r\n",
    ):
        with closing(door.connect(head)) as connection:
            assert b" 40" in connection.recv(4096) or b" 505" in connection.recv(4096)
    door.ask("GET", f"/v1/jobs?access_token={token}", Authorization="")

    wait_until(lambda: door.log.read_text().count("Invalid request") == 3)
    assert token not in door.log.read_text()
    assert token.split(".")[2] not in door.log.read_text()


# From a page of another origin.


def test_a_page_of_a_named_origin_reads_events_and_refusals(door: Door) -> None:
    job_id, token = job_of(door), token_of(door, upload_id=BEE_ID)
    url = f"{door.url}/v1/jobs/{job_id}/events?access_token="
    for text, status in ((token, 200), (f"{token}x", 401)):
        headers = {"Origin": PAGE, "Prefer": "wait=1"}
        with closing(requests.get(url + text, headers=headers, stream=True, timeout=40)) as response:
            assert response.status_code == status
            assert response.headers["Access-Control-Allow-Origin"] == PAGE


def test_without_redis_a_token_is_not_called_invalid(
    without_redis: Caller, apiary: Caller, key_store: KeyStore
) -> None:
    _, made = key_store.create("apiary", [Scope.READ])
    token = make_token(Caller(apiary.app, made.get_secret_value()))

    check_problem(Caller(without_redis.app, token).get("/v1/jobs"), 503, "queue_unavailable")


def test_a_token_for_a_known_image_is_for_it_by_each_of_its_names(apiary: Caller, images: None) -> None:
    bee = apiary.post("/v1/images", {"image": {"upload_id": BEE_ID}}).json["image_id"]
    wasp = apiary.post("/v1/images", {"image": {"upload_id": WASP_ID}}).json["image_id"]
    page = Caller(apiary.app, make_token(apiary, image_id=bee))

    for name, image_id in (("image_id", bee), ("upload_id", BEE_ID)):
        sent = page.send({**CLICK, "image": {name: image_id}})
        assert sent.status_code == 202, sent.text
        assert page.get(f"/v1/jobs/{sent.json['id']}").status_code == 200
    assert page.get(f"/v1/jobs/{job_id_of(bee)}").json["mode"] == "embed"
    for image_id in (wasp, f"img_{'0' * 32}"):
        check_problem(page.send({**CLICK, "image": {"image_id": image_id}}), 403, "image_not_allowed")
    assert page.get(f"/v1/jobs/{job_id_of(wasp)}").status_code == 404


def test_a_token_for_an_image_that_is_not_known_or_for_two_is_not_made(apiary: Caller, bakery: Caller) -> None:
    theirs = bakery.post("/v1/images", {"image": {"url": "https://example.com/bee.jpg"}}).json["image_id"]

    for image_id in (theirs, f"img_{'0' * 32}"):
        refused = check_problem(apiary.post("/v1/tokens", {"image_id": image_id}), 422, "image_not_known")
        assert [fault.pointer for fault in refused.errors or ()] == ["/image_id"]
    both = {"image_id": theirs, "upload_id": BEE_ID}
    check_problem(apiary.post("/v1/tokens", both), 422, "invalid_token_request")


def test_a_refinement_that_leaves_its_image_out_is_of_the_tokens_image(
    page: Caller, apiary: Caller, ledger: Ledger, store: Store
) -> None:
    mine = apiary.a_job(image={"upload_id": BEE_ID}, outputs=["logits"])
    other = apiary.a_job(image={"upload_id": WASP_ID}, outputs=["logits"])
    for job_id in (mine, other):
        run_to_success(job_id, ledger, store)

    def refine(job_id: str) -> TestResponse:
        return page.send(
            {"mode": "point", "prompts": [{"points": [[9, 9]], "mask_input": {"job_id": job_id, "mask": 0}}]}
        )

    sent = refine(mine)
    assert sent.status_code == 202, sent.text
    assert page.get(f"/v1/jobs/{sent.json['id']}").status_code == 200
    check_problem(refine(other), 403, "image_not_allowed")
