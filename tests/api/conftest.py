"""The API on the test run's own Redis and S3, with two tenants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.api_keys import KeyStore
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.settings import ApiSettings
from tests.api.caller import Caller, a_closed_port
from tests.conftest import PHOTOS_BUCKET, WEBHOOK_MASTER

MODEL, OTHER_MODEL = "sam-demo", "sam-other"
KEYS = {"apiary": "key-of-the-apiary", "bakery": "key-of-the-bakery"}

SettingsMaker = Callable[..., ApiSettings]


@pytest.fixture(scope="session")
def make_settings(shared_fields: dict[str, str]) -> SettingsMaker:
    """Makes settings, with a test's own changes."""

    def make(**changes: Any) -> ApiSettings:  # Any: a settings field's own type
        fields: dict[str, Any] = {
            **shared_fields,
            "api_keys": ",".join(f"{tenant}:{key}" for tenant, key in KEYS.items()),
            "webhook_master_secrets": WEBHOOK_MASTER,
            "model": MODEL,
            "models": OTHER_MODEL,
            "allowed_buckets": PHOTOS_BUCKET,
            # Their counters are keys, and many tests check what is left in Redis.
            "rate_limit": "",
            "anonymous_rate_limit": "",
            # Tests look at what they have just changed.
            "health_cache_s": 0,
            **changes,
        }
        return ApiSettings(**fields)

    return make


@pytest.fixture(scope="session")
def one_app(make_settings: SettingsMaker) -> Flask:
    """The app; all that it remembers is which ledger it met, so one is enough."""
    return create_app(make_settings())


@pytest.fixture
def app(one_app: Flask, redis_client: redis.Redis) -> Flask:
    """The app, with an empty ledger."""
    return one_app


@pytest.fixture
def new_app(make_settings: SettingsMaker, redis_client: redis.Redis) -> Flask:
    """An app that knows no ledger yet: the one app has met others, and its readiness says that they are lost."""
    return create_app(make_settings())


@pytest.fixture
def key_store(redis_client: redis.Redis) -> KeyStore:
    """The keys that are made while the service runs."""
    return KeyStore(redis_client)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client without a key."""
    return app.test_client()


@pytest.fixture
def apiary(app: Flask) -> Caller:
    """A tenant."""
    return Caller(app, KEYS["apiary"])


@pytest.fixture
def bakery(app: Flask) -> Caller:
    """Another tenant of the same service."""
    return Caller(app, KEYS["bakery"])


@pytest.fixture
def without_redis(make_settings: SettingsMaker) -> Caller:
    """A tenant of a service whose Redis is down."""
    settings = make_settings(redis_url=f"redis://127.0.0.1:{a_closed_port()}/0")
    return Caller(create_app(settings), KEYS["apiary"])


@pytest.fixture
def without_store(make_settings: SettingsMaker, ledger: Ledger) -> Caller:
    """A tenant of a service whose S3 is down."""
    settings = make_settings(s3_endpoint=f"http://127.0.0.1:{a_closed_port()}")
    return Caller(create_app(settings), KEYS["apiary"])
