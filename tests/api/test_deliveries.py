"""Webhooks over the API: their attempts, redelivery and pings; a tenant sees only its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
import redis
from flask import Flask

from maskfleet.api.app import create_app
from maskfleet.client.webhooks import verify_webhook
from maskfleet.jobs.ledger.deliveries import MAX_REDELIVERED, Deliveries, Delivery
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.delivery import DeliveryAttempt, DeliveryAttemptOutcome, DeliveryState
from maskfleet.jobs.settings import CourierSettings
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.worker.courier.courier import Courier
from tests.api.caller import Caller, a_closed_port, check_problem, claim
from tests.api.conftest import KEYS, SettingsMaker
from tests.conftest import WEBHOOK_MASTER
from tests.taking import take_due
from tests.waiting import wait_until

HOOK = "https://example.com/hook"
UNKNOWN = f"msg_ping_{'0' * 32}"


def an_ended_job(caller: Caller, ledger: Ledger, **fields: Any) -> str:  # Any: JSON
    """Return a failed job with a webhook waiting to be sent."""
    job_id = caller.a_job(image={"url": "https://example.com/bee.jpg"}, webhook={"url": HOOK}, **fields)
    ledger.fail(claim(job_id, ledger), "image_corrupt", "The JPEG file is damaged.")
    return job_id


def take(deliveries: Deliveries) -> Delivery:
    """Take what is due as a courier does, and store its body."""
    [delivery] = take_due(deliveries)
    deliveries.keep_body(delivery, '{"kept": true}')
    return delivery


def an_attempt(delivery: Delivery, status: int, response: str = "") -> DeliveryAttempt:
    return DeliveryAttempt(
        number=delivery.attempts_total,
        at=datetime.fromtimestamp(delivery.now_s, UTC),
        duration_s=0.25,
        outcome=DeliveryAttemptOutcome.DELIVERED if status < 300 else DeliveryAttemptOutcome.FAILED,
        status=status,
        answer=response,
    )


def give_up(deliveries: Deliveries) -> Delivery:
    """Fail to send what is due, as a courier does, for the last time."""
    delivery = take(deliveries)
    deliveries.ended(delivery, DeliveryState.GIVEN_UP, an_attempt(delivery, 500))
    return delivery


def arrive(deliveries: Deliveries) -> Delivery:
    delivery = take(deliveries)
    deliveries.ended(delivery, DeliveryState.DELIVERED, an_attempt(delivery, 204))
    return delivery


def test_each_try_is_shown_with_its_time_status_duration_and_answer(
    apiary: Caller, ledger: Ledger, deliveries: Deliveries
) -> None:
    job_id = an_ended_job(apiary, ledger)
    waiting = apiary.get(f"/v1/jobs/{job_id}/deliveries").json["deliveries"]

    first = take(deliveries)
    deliveries.postponed(first, 0, an_attempt(first, 500, "<h1>Sorry</h1>"))
    second = take(deliveries)
    deliveries.ended(second, DeliveryState.DELIVERED, an_attempt(second, 204))
    response = apiary.get(f"/v1/jobs/{job_id}/deliveries")

    assert [(one["state"], one["tries"]) for one in waiting] == [("waiting", [])]
    [shown] = response.json["deliveries"]
    assert (shown["id"], shown["job_id"], shown["type"]) == (f"msg_{job_id}_1_failed", job_id, "job.failed")
    assert (shown["url"], shown["state"], shown["next_try_at"]) == (HOOK, "delivered", None)
    assert [(one["number"], one["status"], one["answer"]) for one in shown["tries"]] == [
        (1, 500, "<h1>Sorry</h1>"),
        (2, 204, ""),
    ]
    assert all(one["duration_s"] == 0.25 and datetime.fromisoformat(one["at"]) for one in shown["tries"])
    assert apiary.get(f"/v1/deliveries/{shown['id']}").json == shown


def test_a_job_without_a_webhook_has_no_deliveries(apiary: Caller) -> None:
    assert apiary.get(f"/v1/jobs/{apiary.a_job()}/deliveries").json == {"deliveries": []}


def test_what_was_given_up_is_sent_again_under_its_id_and_with_its_bytes(
    apiary: Caller, ledger: Ledger, deliveries: Deliveries
) -> None:
    an_ended_job(apiary, ledger)
    lost = give_up(deliveries)
    assert take_due(deliveries) == []

    response = apiary.post(f"/v1/deliveries/{lost.id}/redeliver")
    again = take(deliveries)

    assert (response.status_code, response.json["state"]) == (202, "waiting")
    assert response.headers["Location"].endswith(f"/v1/deliveries/{lost.id}")
    assert (again.id, again.body, again.attempts_since_queued, again.attempts_total) == (
        lost.id,
        '{"kept": true}',
        1,
        2,
    )


def test_what_is_being_sent_is_not_sent_twice_by_a_redelivery(
    apiary: Caller, ledger: Ledger, deliveries: Deliveries
) -> None:
    an_ended_job(apiary, ledger)
    under_way = take(deliveries)

    response = apiary.post(f"/v1/deliveries/{under_way.id}/redeliver")

    assert response.status_code == 202
    assert take_due(deliveries) == []


def test_the_failed_ones_of_a_time_are_sent_again_and_others_only_when_asked_for(
    apiary: Caller, bakery: Caller, ledger: Ledger, deliveries: Deliveries
) -> None:
    began = datetime.now(UTC) - timedelta(seconds=60)  # Redis' clock may differ
    an_ended_job(bakery, ledger)
    give_up(deliveries)
    an_ended_job(apiary, ledger)
    lost = give_up(deliveries)
    an_ended_job(apiary, ledger)
    arrived = arrive(deliveries)
    span = {"from": began.isoformat(), "to": (datetime.now(UTC) + timedelta(seconds=60)).isoformat()}

    before = apiary.post("/v1/deliveries/redeliver", {"from": "2020-01-01T00:00:00Z", "to": began.isoformat()})
    failed = apiary.post("/v1/deliveries/redeliver", span)
    due = [delivery.id for delivery in take_due(deliveries)]
    everything = apiary.post("/v1/deliveries/redeliver", {**span, "only_failed": False})

    assert (before.status_code, before.json) == (202, {"queued": [], "more": False})
    assert (failed.status_code, failed.json) == (202, {"queued": [lost.id], "more": False})
    assert due == [lost.id]
    assert everything.json == {"queued": [arrived.id], "more": False}  # the other one is in flight


def test_who_has_too_many_sent_again_is_told_when_to_come_back(
    apiary: Caller, bakery: Caller, ledger: Ledger, deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    for caller in (apiary, bakery):
        an_ended_job(caller, ledger)
        lost = give_up(deliveries)
    redis_client.set("mf:redelivered:apiary", MAX_REDELIVERED, ex=600)

    refused = apiary.post("/v1/deliveries/redeliver", {"from": "2020-01-01T00:00:00Z"})
    others = bakery.post("/v1/deliveries/redeliver", {"from": "2020-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"})

    check_problem(refused, 429, "too_many_redeliveries")
    assert 590 <= int(refused.headers["Retry-After"]) <= 600
    assert others.json == {"queued": [lost.id], "more": False}


def test_a_range_ends_now_when_it_does_not_say(apiary: Caller, ledger: Ledger, deliveries: Deliveries) -> None:
    an_ended_job(apiary, ledger)
    lost = give_up(deliveries)
    wait_until(lambda: datetime.now(UTC).timestamp() > lost.now_s + 1)

    response = apiary.post("/v1/deliveries/redeliver", {"from": "2020-01-01T01:00:00+01:00"})

    assert response.json["queued"] == [lost.id]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"from": 1700000000},
        {"from": "1700000000"},
        {"from": "2026-01-01T00:00:00"},
        {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"from": "2026-01-01T00:00:00Z", "only_failed": "yes"},
        {"from": "2026-01-01T00:00:00Z", "colour": "red"},
        {"since": "2026-01-01T00:00:00Z"},
    ],
)
def test_a_range_that_makes_no_sense_is_refused(apiary: Caller, body: dict[str, object]) -> None:
    problem = check_problem(apiary.post("/v1/deliveries/redeliver", body), 422, "invalid_range")

    assert problem.errors


def test_a_range_that_ends_before_it_begins_is_refused_with_the_field_and_what_is_wrong_with_it(apiary: Caller) -> None:
    body = {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}

    problem = check_problem(apiary.post("/v1/deliveries/redeliver", body), 422, "invalid_range")

    assert problem.detail == "/from: The start of the range is after its end."
    assert problem.errors is not None
    assert [(field.pointer, field.code, field.detail) for field in problem.errors] == [
        ("/from", "range_is_empty", "The start of the range is after its end.")
    ]


def test_another_tenants_webhooks_are_as_if_they_were_not(
    apiary: Caller, bakery: Caller, ledger: Ledger, deliveries: Deliveries
) -> None:
    job_id = an_ended_job(apiary, ledger)
    theirs = give_up(deliveries)

    for delivery_id in (theirs.id, UNKNOWN):
        check_problem(bakery.get(f"/v1/deliveries/{delivery_id}"), 404, "delivery_not_found")
        check_problem(bakery.post(f"/v1/deliveries/{delivery_id}/redeliver"), 404, "delivery_not_found")
    check_problem(bakery.get(f"/v1/jobs/{job_id}/deliveries"), 404, "job_not_found")
    assert bakery.post("/v1/deliveries/redeliver", {"from": "2020-01-01T00:00:00Z"}).json["queued"] == []
    assert take_due(deliveries) == []


# Pings, with a real courier and a real receiver.


class Hook:
    """A receiver that responds as scripted and keeps what it got."""

    def __init__(self, status: int, response: bytes) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(status)
                self.send_header("Content-Length", str(len(response)))
                self.end_headers()
                self.wfile.write(response)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@contextmanager
def a_hook(status: int = 204, response: bytes = b"") -> Iterator[Hook]:
    hook = Hook(status, response)
    thread = Thread(target=hook.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.server.shutdown()
        hook.server.server_close()
        thread.join()


@contextmanager
def a_courier(redis_url: str, **changes: Any) -> Iterator[None]:  # Any: a settings field's own type
    fields = {
        "redis_url": redis_url,
        "webhook_master_secrets": (WEBHOOK_MASTER,),
        "tick_s": 0.02,
        "egress_allow_private": True,
        "sweep_s": 0,
        **changes,
    }
    over = Event()
    thread = Thread(target=Courier(CourierSettings(**fields)).run, args=(over.is_set,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def closed_network_app(make_settings: SettingsMaker) -> Flask:
    return create_app(make_settings(egress_allow_private=True))


@pytest.fixture
def inside(closed_network_app: Flask, redis_client: redis.Redis) -> Caller:
    """A tenant of a service on a closed network, whose receivers are on this machine."""
    return Caller(closed_network_app, KEYS["apiary"])


def test_a_ping_shows_the_bytes_and_headers_that_were_signed_and_what_was_answered(
    inside: Caller, redis_url: str
) -> None:
    with a_courier(redis_url), a_hook(200, b"thanks") as hook:
        response = inside.post("/v1/webhooks/ping", {"url": hook.url})

    assert (response.status_code, response.json["code"]) == (200, "delivered")
    [(headers, body)] = hook.came
    secret = tenant_secret(WEBHOOK_MASTER, "apiary")
    assert response.json["body"].encode() == body
    assert json.loads(body)["data"] == {"url": hook.url}
    shown = {name.lower(): value for name, value in response.json["headers"].items()}
    assert {name: headers[name] for name in shown} == shown
    assert verify_webhook(response.json["body"].encode(), shown, secret).type == "webhook.ping"
    [only] = response.json["delivery"]["tries"]
    assert (only["status"], only["answer"], only["outcome"]) == (200, "thanks", "delivered")
    assert response.json["delivery"]["id"] == headers["webhook-id"]
    assert secret.removeprefix("whsec_") not in response.text


@pytest.mark.parametrize("status", [500, 410, 302])
def test_a_ping_that_is_not_taken_says_what_was_answered_and_is_not_repeated(
    inside: Caller, redis_url: str, deliveries: Deliveries, status: int
) -> None:
    with a_courier(redis_url, webhook_schedule_s=(0, 0, 0)), a_hook(status, b"x" * 5000) as hook:
        response = inside.post("/v1/webhooks/ping", {"url": hook.url})
        wait_until(lambda: deliveries.waiting() == 0)

    assert (response.status_code, response.json["code"]) == (200, "not_delivered")
    [only] = response.json["delivery"]["tries"]
    assert (only["status"], only["answer"]) == (status, "x" * 1024)
    assert response.json["headers"]["webhook-signature"].startswith("v1,")
    assert len(hook.came) == 1


def test_a_ping_to_where_nobody_listens_says_so(inside: Caller, redis_url: str) -> None:
    with a_courier(redis_url):
        response = inside.post("/v1/webhooks/ping", {"url": f"http://127.0.0.1:{a_closed_port()}/"})

    assert (response.status_code, response.json["code"]) == (200, "not_delivered")
    [only] = response.json["delivery"]["tries"]
    assert only["status"] is None
    assert only["error"]


def test_a_ping_goes_to_a_tenants_own_endpoint_when_it_names_none(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    app = create_app(make_settings(webhook_endpoints=f"apiary:{HOOK}", max_wait_s=0))

    response = Caller(app, KEYS["apiary"]).post("/v1/webhooks/ping", {})
    problem = check_problem(Caller(app, KEYS["bakery"]).post("/v1/webhooks/ping", {}), 422, "invalid_ping")

    assert response.json["delivery"]["url"] == HOOK
    assert problem.errors is not None
    assert problem.errors[0].code == "no_endpoint"


@pytest.mark.parametrize("prefer", ["wait=0", "wait=1"])
def test_without_a_courier_a_ping_says_that_it_was_not_sent_and_where_to_look(
    inside: Caller, redis_url: str, prefer: str
) -> None:
    with a_hook() as hook:
        response = inside.post("/v1/webhooks/ping", {"url": hook.url}, Prefer=prefer)
        place = response.headers["Location"].partition("/v1/")[2]
        assert (response.status_code, response.json["code"], response.json["headers"]) == (202, "not_sent_yet", None)
        assert hook.came == []

        with a_courier(redis_url):
            wait_until(lambda: inside.get(f"/v1/{place}").json["state"] == "delivered")

    [(_, body)] = hook.came
    assert response.json["body"].encode() == body


def test_a_ping_to_an_address_that_is_not_gone_to_is_refused_at_once_and_not_recorded(
    apiary: Caller, redis_client: redis.Redis
) -> None:
    for url in ("https://127.0.0.1/hook", "http://example.com/hook", "https://169.254.169.254/", "https://printer/"):
        problem = check_problem(apiary.post("/v1/webhooks/ping", {"url": url}), 422, "url_not_allowed")

        assert problem.errors is not None
        assert problem.errors[0].pointer == "/url"
    assert redis_client.keys("*") == []


@pytest.mark.parametrize("body", [{"url": 7}, {"url": "ftp://example.com"}, {"url": "https://a@example.com"}, {"x": 1}])
def test_a_ping_that_makes_no_sense_is_refused(apiary: Caller, body: dict[str, object]) -> None:
    assert check_problem(apiary.post("/v1/webhooks/ping", body), 422, "invalid_ping").errors


def test_another_tenant_does_not_see_a_ping(apiary: Caller, bakery: Caller) -> None:
    response = apiary.post("/v1/webhooks/ping", {"url": HOOK}, Prefer="wait=0")
    delivery_id = response.json["delivery"]["id"]

    check_problem(bakery.get(f"/v1/deliveries/{delivery_id}"), 404, "delivery_not_found")
    assert apiary.get(f"/v1/deliveries/{delivery_id}").json == response.json["delivery"]
