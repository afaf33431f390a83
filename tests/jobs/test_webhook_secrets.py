"""The tenants' webhook secrets: derived, rotated, never stored."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
import redis

from maskfleet.jobs.errors import TooManySecrets
from maskfleet.jobs.ledger.webhook_secrets import MAX_EARLIER, WebhookSecrets
from maskfleet.jobs.webhook_secrets import new_master, tenant_secret
from tests.conftest import WEBHOOK_MASTER

OTHER_MASTER = f"whsec_{base64.b64encode(b'another secret of the tests').decode()}"


def texts(secrets: WebhookSecrets, tenant: str = "ant") -> list[str]:
    return [secret.text for secret in secrets.of(tenant)]


def test_a_secret_is_the_hmac_of_the_tenants_name_as_documented() -> None:
    message = b"maskfleet webhook secret\0ant"

    expected = hmac.new(b"a secret of the tests, long", message, hashlib.sha256).digest()

    assert tenant_secret(WEBHOOK_MASTER, "ant") == f"whsec_{base64.b64encode(expected).decode()}"


def test_each_tenant_master_and_generation_has_a_secret_of_its_own() -> None:
    made = [
        tenant_secret(master, tenant, generation)
        for master in (WEBHOOK_MASTER, OTHER_MASTER, new_master(), new_master())
        for tenant in ("ant", "bee", "ant1")
        for generation in ("", "1", "11")
    ]

    assert len(set(made)) == len(made)


def test_a_tenant_has_its_secret_before_anything_is_stored_and_after_all_is_lost(redis_client: redis.Redis) -> None:
    secrets = WebhookSecrets(redis_client, (WEBHOOK_MASTER,))

    assert texts(secrets) == [tenant_secret(WEBHOOK_MASTER, "ant")]
    assert redis_client.keys("*") == []


def test_a_rotation_changes_one_tenants_secret_and_the_previous_one_signs_meanwhile(redis_client: redis.Redis) -> None:
    secrets = WebhookSecrets(redis_client, (WEBHOOK_MASTER,))
    before, others = texts(secrets), texts(secrets, "bee")

    secrets.rotate("ant", overlap_s=600)

    current, previous = secrets.of("ant")
    assert [previous.text] == before
    assert current.text != previous.text
    assert current.until is None
    assert previous.until is not None
    assert 590 < previous.until.timestamp() - redis_client.time()[0] <= 601
    assert texts(secrets, "bee") == others
    assert not any(secret.text.removeprefix("whsec_") in repr((current, previous)) for secret in (current, previous))


def test_the_earlier_secret_ends_by_itself(redis_client: redis.Redis) -> None:
    secrets = WebhookSecrets(redis_client, (WEBHOOK_MASTER,))
    secrets.rotate("ant", overlap_s=600)
    current, previous = redis_client.zrange("mf:webhook_secrets:ant", 0, -1, desc=True)
    redis_client.zadd("mf:webhook_secrets:ant", {str(previous): 1})  # as if the time had passed

    assert texts(secrets) == [tenant_secret(WEBHOOK_MASTER, "ant", str(current))]
    secrets.rotate("ant", overlap_s=600)
    assert redis_client.zscore("mf:webhook_secrets:ant", str(previous)) is None


def test_a_secret_that_leaked_and_all_before_it_end_at_once(redis_client: redis.Redis) -> None:
    secrets = WebhookSecrets(redis_client, (WEBHOOK_MASTER,))
    for _ in range(MAX_EARLIER):
        secrets.rotate("ant", overlap_s=600)
    leaked = texts(secrets)

    secrets.rotate("ant", overlap_s=0)

    assert len(texts(secrets)) == 1
    assert not set(texts(secrets)) & set(leaked)


def test_no_more_than_a_few_overlap_and_a_shorter_overlap_holds_for_all(redis_client: redis.Redis) -> None:
    secrets = WebhookSecrets(redis_client, (WEBHOOK_MASTER,))
    for _ in range(MAX_EARLIER - 1):
        secrets.rotate("ant", overlap_s=600)
    secrets.rotate("ant", overlap_s=60)
    kept = secrets.of("ant")

    with pytest.raises(TooManySecrets, match="too_many_secrets"):
        secrets.rotate("ant", overlap_s=600)

    assert len(kept) == MAX_EARLIER + 1
    now = redis_client.time()[0]
    assert all(one.until is not None and one.until.timestamp() - now <= 61 for one in kept[1:])
    assert secrets.of("ant") == kept


def test_a_rotation_that_runs_twice_rotates_once(redis_client: redis.Redis) -> None:
    from maskfleet.jobs.ledger.connection import load_script

    rotate = load_script(redis_client, "rotate_webhook_secret")

    replies = [rotate(args=["ant", "a1", 600_000, MAX_EARLIER]) for _ in range(2)]

    assert replies == ["rotated", "rotated"]
    assert set(redis_client.zrange("mf:webhook_secrets:ant", 0, -1)) == {"first", "a1"}


def test_each_master_signs_while_one_replaces_the_other(redis_client: redis.Redis) -> None:
    secrets = WebhookSecrets(redis_client, (OTHER_MASTER, WEBHOOK_MASTER))

    assert texts(secrets) == [tenant_secret(master, "ant") for master in (OTHER_MASTER, WEBHOOK_MASTER)]
    assert [secret.until for secret in secrets.of("ant")] == [None, None]


def test_without_a_master_there_is_no_secret(redis_client: redis.Redis) -> None:
    assert WebhookSecrets(redis_client, ()).of("ant") == ()
