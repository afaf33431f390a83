"""Which objects a tenant's jobs may name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import allowed_object

ALLOWED = "apiary:photos/apiary/, bakery:photos/bakery,bakery:bread,*:shared-photos/open,everyones"


def settings(allowed: str = ALLOWED) -> SharedSettings:
    return SharedSettings(allowed_buckets=allowed)


@pytest.mark.parametrize(
    ("tenant", "uri"),
    [
        ("apiary", "s3://photos/apiary/bee.jpg"),
        ("apiary", "s3://photos/apiary/deep/er/bee.jpg"),
        ("bakery", "s3://photos/bakery/bun.jpg"),
        ("bakery", "s3://bread/bun.jpg"),
        ("anyone", "s3://shared-photos/open/a.jpg"),
        ("apiary", "s3://everyones/a.jpg"),
    ],
)
def test_a_tenant_may_name_what_is_its_own_and_what_is_for_all(tenant: str, uri: str) -> None:
    bucket, key = allowed_object(uri, tenant, settings())

    assert f"s3://{bucket}/{key}" == uri


@pytest.mark.parametrize(
    ("tenant", "uri"),
    [
        ("bakery", "s3://photos/apiary/bee.jpg"),
        ("apiary", "s3://bread/bun.jpg"),
        ("apiary", "s3://photos/bee.jpg"),
        ("apiary", "s3://photos/apiary"),
        ("apiary", "s3://photos/apiary-private/bee.jpg"),
        ("apiary", "s3://photos/Apiary/bee.jpg"),
        ("apiary", "s3://photos.apiary/bee.jpg"),
        ("apiary", "s3://shared-photos/closed/a.jpg"),
        ("*", "s3://bread/bun.jpg"),
        ("", "s3://bread/bun.jpg"),
        ("apiary", "s3://maskfleet/uploads/apiary/upl_0"),
    ],
)
def test_nothing_else_may_be_named(tenant: str, uri: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        allowed_object(uri, tenant, settings())

    assert (refused.value.code, refused.value.http_status) == ("bucket_not_allowed", 403)


def test_a_refusal_says_what_is_allowed_and_nothing_of_others() -> None:
    with pytest.raises(InvalidRequest) as refused:
        allowed_object("s3://photos/bakery/bun.jpg", "apiary", settings())

    assert "s3://photos/apiary/, s3://shared-photos/open/, s3://everyones/" in refused.value.detail
    assert "bread" not in refused.value.detail


@pytest.mark.parametrize("key", ["apiary/../bakery/bun.jpg", "apiary/./x", "apiary//x", "apiary/..\\bakery/bun.jpg"])
def test_no_key_leads_out_of_its_folder(key: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        allowed_object(f"s3://photos/{key}", "apiary", settings())

    assert refused.value.code == "invalid_s3_uri"


@pytest.mark.parametrize(
    "allowed",
    [
        "Photos",
        "photos/../x",
        "photos//x",
        "photos/a\\b",
        "a b:photos",
        "a:b:photos",
        "s3://photos",
        ":photos",
        "p",
        "a:",
    ],
)
def test_an_entry_that_cannot_be_read_stops_the_start(allowed: str) -> None:
    with pytest.raises(ValidationError, match="not a bucket that jobs may name"):
        settings(allowed)


@pytest.mark.parametrize("allowed", ["maskfleet", "photos,apiary:maskfleet/uploads/apiary"])
def test_the_services_own_bucket_stops_the_start(allowed: str) -> None:
    with pytest.raises(ValidationError, match="own bucket"):
        settings(allowed)


def test_entries_survive_being_written_to_another_programs_environment() -> None:
    entries = settings().allowed_buckets

    assert settings(",".join(map(str, entries))).allowed_buckets == entries
    assert [str(entry) for entry in entries] == [
        *("apiary:photos/apiary/", "bakery:photos/bakery/", "bakery:bread", "shared-photos/open/", "everyones"),
    ]
