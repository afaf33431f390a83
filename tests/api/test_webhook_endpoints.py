"""The operator's setting for where to report a tenant's jobs that name no webhook."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.settings import ApiSettings
from tests.api.caller import Caller, job
from tests.api.conftest import KEYS, SettingsMaker
from tests.taking import take_due

HOOK, OWN_HOOK = "https://example.com:8443/hook?token=a:b", "https://example.com/own"


def test_jobs_that_name_no_webhook_are_told_of_at_their_tenants_endpoint(
    make_settings: SettingsMaker, ledger: Ledger, deliveries: Deliveries
) -> None:
    app = create_app(make_settings(webhook_endpoints=f"apiary:{HOOK}, ghost:https://example.org/"))
    apiary, bakery = (Caller(app, KEYS[tenant]) for tenant in ("apiary", "bakery"))
    image = {"url": "https://example.com/bee.jpg"}
    sent = [
        apiary.send(job(image=image)),
        apiary.send(job(image=image, webhook={"url": OWN_HOOK})),
        bakery.send(job(image=image)),
    ]

    for tenant, response in zip(("apiary", "apiary", "bakery"), sent, strict=True):
        ledger.cancel(response.json["id"], tenant)

    assert {(one.tenant, one.url, one.event) for one in take_due(deliveries)} == {
        ("apiary", HOOK, "canceled"),
        ("apiary", OWN_HOOK, "canceled"),
    }


@pytest.mark.parametrize(
    "endpoints", ["apiary:http://example.com/", "apiary:https://10.0.0.1/", "apiary:mail me", "https://example.com/"]
)
def test_an_endpoint_that_is_not_sent_to_stops_the_start_and_is_not_shown(endpoints: str) -> None:
    with pytest.raises(ValidationError, match="webhook_endpoints") as error:
        ApiSettings(webhook_endpoints=f"{endpoints}?token=hidden")

    assert "hidden" not in str(error.value)
    assert "hidden" not in repr(ApiSettings(webhook_endpoints="apiary:https://example.com/?token=hidden"))
