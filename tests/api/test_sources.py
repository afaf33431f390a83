"""What a job refers to is checked by the API, as far as possible without fetching it."""

from __future__ import annotations

from typing import Any

import pytest

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller, check_problem, job, run_to_success
from tests.api.conftest import KEYS, SettingsMaker
from tests.conftest import PHOTOS_BUCKET

PUBLIC = {"url": "https://example.com/bee.jpg"}
BOX = [1, 1, 9, 9]


def naming(url: str, field: str) -> dict[str, Any]:
    return job(image={"url": url}) if field == "/image/url" else job(image=PUBLIC, webhook={"url": url})


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/bee.jpg",
        "https://example.com:22/bee.jpg",
        "https://localhost/bee.jpg",
        "https://2130706433/bee.jpg",
        "https://[::ffff:169.254.169.254]/latest/meta-data/",
        "https://metadata.google.internal/",
    ],
)
@pytest.mark.parametrize("field", ["/image/url", "/webhook/url"])
def test_an_address_that_is_not_of_the_public_network_is_refused(apiary: Caller, url: str, field: str) -> None:
    response = apiary.send(naming(url, field))

    problem = check_problem(response, 422, "url_not_allowed")
    assert [fault.pointer for fault in problem.errors or ()] == [field]


@pytest.mark.parametrize("url", ["https://me:secret@example.com/", "gopher://example.com/", "https://a\\b.com/"])
@pytest.mark.parametrize("field", ["/image/url", "/webhook/url"])
def test_nonsense_is_refused_whatever_the_network(make_settings: SettingsMaker, url: str, field: str) -> None:
    closed = Caller(create_app(make_settings(egress_allow_private=True)), KEYS["apiary"])

    response = closed.send(naming(url, field))

    problem = check_problem(response, 422, "invalid_spec")
    assert [(fault.pointer, fault.code) for fault in problem.errors or ()] == [(field, "invalid_url")]


def test_a_closed_network_takes_its_own_addresses(make_settings: SettingsMaker, ledger: Ledger) -> None:
    closed = Caller(create_app(make_settings(egress_allow_private=True)), KEYS["apiary"])

    response = closed.send(job(image={"url": "http://camera/bee.jpg"}, webhook={"url": "http://127.0.0.1:9/hook"}))

    assert response.status_code == 202


def test_the_services_own_servers_are_refused_at_once(make_settings: SettingsMaker) -> None:
    settings = make_settings(egress_allow_private=True, egress_deny="filer", bind="127.0.0.1:8765")
    closed = Caller(create_app(settings), KEYS["apiary"])
    own = [settings.redis_url.get_secret_value().replace("redis://", "http://"), settings.s3_endpoint]

    for url in (*own, "http://filer/", "http://FILER:1/", "http://127.0.0.1:8765/metrics", "http://127.0.0.2:8765/"):
        for field in ("/image/url", "/webhook/url"):
            problem = check_problem(closed.send(naming(url, field)), 422, "url_not_allowed")
            assert [fault.pointer for fault in problem.errors or ()] == [field]


def from_mask(**mask_input: Any) -> dict[str, Any]:
    return job(mode="box", image=PUBLIC, prompts=[{"box": BOX, "mask_input": mask_input}])


def test_a_mask_of_a_bucket_that_is_not_allowed_is_refused(apiary: Caller) -> None:
    check_problem(apiary.send(from_mask(s3_uri="s3://secrets/mask.npy")), 403, "bucket_not_allowed")
    assert apiary.send(from_mask(s3_uri=f"s3://{PHOTOS_BUCKET}/mask.npy")).status_code == 202


def test_each_tenant_names_its_own_objects_only(make_settings: SettingsMaker, ledger: Ledger) -> None:
    app = create_app(make_settings(allowed_buckets=f"apiary:{PHOTOS_BUCKET}/apiary,{PHOTOS_BUCKET}/shared"))
    apiary, bakery = (Caller(app, KEYS[tenant]) for tenant in ("apiary", "bakery"))
    own, shared = f"s3://{PHOTOS_BUCKET}/apiary/bee.jpg", f"s3://{PHOTOS_BUCKET}/shared/bee.jpg"

    assert apiary.send(job(image={"s3_uri": own})).status_code == 202
    assert bakery.send(job(image={"s3_uri": shared})).status_code == 202
    refused = [
        (job(image={"s3_uri": own}), "/image/s3_uri"),
        (from_mask(s3_uri=own), "/prompts/0/mask_input/s3_uri"),
        ({"mode": "everything", "images": [PUBLIC, {"s3_uri": own}]}, "/images/1"),
    ]
    for body, pointer in refused:
        path = "/v1/batches" if "images" in body else "/v1/jobs"
        problem = check_problem(bakery.post(path, body), 403, "bucket_not_allowed")
        assert [fault.pointer for fault in problem.errors or ()] == [pointer]
        assert problem.detail.startswith(f"{pointer}: This object is in no bucket or folder")


def test_a_mask_that_was_never_uploaded_is_refused(apiary: Caller) -> None:
    check_problem(apiary.send(from_mask(upload_id="upl_" + "0" * 32)), 422, "mask_input_not_found")


def test_a_mask_of_a_job_that_wrote_none_is_refused(
    apiary: Caller, bakery: Caller, ledger: Ledger, store: Store
) -> None:
    without = apiary.a_job(image=PUBLIC)
    run_to_success(without, ledger, store)

    check_problem(apiary.send(from_mask(job_id=without, mask=0)), 422, "mask_input_not_found")
    # What another tenant's job wrote is not revealed.
    assert bakery.send(from_mask(job_id=without, mask=0)).status_code == 202
