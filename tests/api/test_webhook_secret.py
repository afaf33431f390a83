"""A tenant's webhook secret over the API: shown to its owner alone, and rotated."""

from __future__ import annotations

import pytest
import redis
from flask import Flask

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.webhook_secrets import tenant_secret
from tests.api.caller import Caller, check_problem
from tests.api.conftest import KEYS, SettingsMaker
from tests.conftest import WEBHOOK_MASTER

SECRET, ROTATE = "/v1/webhooks/secret", "/v1/webhooks/secret/rotate"


def test_a_tenant_sees_its_own_secret_and_no_other(apiary: Caller, bakery: Caller) -> None:
    answers = {"apiary": apiary.get(SECRET), "bakery": bakery.get(SECRET)}

    for tenant, answer in answers.items():
        assert answer.json == {"secret": tenant_secret(WEBHOOK_MASTER, tenant), "earlier": []}
        assert answer.headers["Cache-Control"] == "no-store"
    assert answers["apiary"].json != answers["bakery"].json


def test_a_key_for_jobs_does_not_open_it(app: Flask, redis_client: redis.Redis) -> None:
    store = KeyStore(redis_client)
    _, for_jobs = store.create("apiary", [Scope.READ, Scope.WRITE])
    _, for_secrets = store.create("apiary", [Scope.WEBHOOK_SECRET])

    refused = [
        Caller(app, for_jobs.get_secret_value()).get(SECRET),
        Caller(app, for_jobs.get_secret_value()).post(ROTATE, {}),
    ]

    for answer in refused:
        assert "webhooks:secret" in check_problem(answer, 403, "missing_scope").detail
    assert Caller(app, for_secrets.get_secret_value()).get(SECRET).status_code == 200
    check_problem(Caller(app, for_secrets.get_secret_value()).get("/v1/jobs"), 403, "missing_scope")


def test_a_rotation_shows_both_and_leaves_other_tenants_theirs(apiary: Caller, bakery: Caller) -> None:
    before, theirs = apiary.get(SECRET).json, bakery.get(SECRET).json

    answer = apiary.post(ROTATE, {"overlap_s": 3600})

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    [earlier] = answer.json["earlier"]
    assert earlier["secret"] == before["secret"] != answer.json["secret"]
    assert earlier["signs_until"].endswith("Z")
    assert apiary.get(SECRET).json == answer.json
    assert bakery.get(SECRET).json == theirs
    assert apiary.post(ROTATE, {"overlap_s": 0}).json["earlier"] == []


def test_too_many_rotations_at_once_are_refused_with_what_to_do(apiary: Caller) -> None:
    for _ in range(3):
        assert apiary.post(ROTATE, {}).status_code == 200

    problem = check_problem(apiary.post(ROTATE, {}), 409, "too_many_secrets")

    assert "overlap_s 0" in problem.detail


@pytest.mark.parametrize(
    "body", [{"overlap_s": -1}, {"overlap_s": 700_000}, {"overlap_s": "long"}, {"tenant": "bakery"}]
)
def test_a_rotation_that_makes_no_sense_is_refused(apiary: Caller, body: dict[str, object]) -> None:
    assert check_problem(apiary.post(ROTATE, body), 422, "invalid_rotation").errors


def test_an_api_that_was_not_given_the_master_says_so(make_settings: SettingsMaker, redis_client: redis.Redis) -> None:
    caller = Caller(create_app(make_settings(webhook_master_secrets="")), KEYS["apiary"])

    for answer in (caller.get(SECRET), caller.post(ROTATE, {})):
        assert "MASKFLEET_WEBHOOK_MASTER_SECRETS" in check_problem(answer, 404, "no_webhook_secret").detail
    assert redis_client.keys("*") == []


def test_without_redis_no_secret_is_shown_that_may_have_been_rotated(without_redis: Caller) -> None:
    check_problem(without_redis.get(SECRET), 503, "queue_unavailable")
